"""Time the checkpoints of the study, on a machine that does nothing else.

For each setting the backbone that was fine-tuned by error is run on images of
its validation set, one by one, at the prices of its rows, in turns with its
dense twin and, where there is one, the smaller static model. What is noted
already isn't timed again.

Example::

    python tools/study/measure.py --threads 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import mean

import torch
from mmengine.config import Config
from mmengine.utils import get_git_hash
from plan import BUDGET, ROOT, SETTINGS
from rows import Row, Rows
from torch import nn

from mmdge.calibration import load_images, runs_at_prices
from mmdge.utils import launch, timing
from mmdge.utils.arguments import positive

RATIOS = (0.35, BUDGET, 0.7)


def measure(
    setting: str, rows: Rows, work_dir: Path, num_images: int, repeats: int
) -> list[Row]:
    """One row for each ratio, for the dense twin, and the smaller model."""
    folder = work_dir / setting / 'seed0'
    points = [
        row
        for ratio in RATIOS
        for row in rows.of(setting, 'finetuned', 'error', asked=ratio)
        if row['seed'] == 0
    ]
    model, cfg = load(folder / f'finetuned-error-{BUDGET:g}')
    images = load_images(cfg, model, num_images, 'val')
    # Arm, budget, ratio asked: what its run is, and whose.
    keys = [('error', BUDGET, row['asked']) for row in points]
    keys.append(('dense', None, None))
    prices = [row['price'] for row in points]
    found = runs_at_prices(model.backbone, prices, images)
    runs = {key: (run, model) for key, run in zip(keys, found, strict=True)}
    smaller = folder / f'scratch-smaller-{BUDGET:g}'
    if (smaller / 'last_checkpoint').exists():
        other, _ = load(smaller)
        (run,) = runs_at_prices(other.backbone, [], images)
        runs['smaller', BUDGET, None] = (run, other)

    flops = {key: count(run, owner) for key, (run, owner) in runs.items()}
    device = images[0].device
    times = timing.interleave(
        {key: run for key, (run, _) in runs.items()}, range(repeats), device
    )
    noted = []
    for (arm, budget, asked), (run, _) in runs.items():
        taken = [1e3 * t / len(images) for t in times[arm, budget, asked]]
        lower, median, upper = timing.Quartiles.of(taken)
        metrics = {
            'backbone/GFLOPs': flops[arm, budget, asked],
            'lower': lower,
            'upper': upper,
            'MB': timing.footprint(run, device).memory / 2**20,
        }
        noted.append(
            dict(
                setting=setting,
                seed=0,
                phase='time',
                arm=arm,
                budget=budget,
                asked=asked,
                metric='ms',
                value=round(median, 3),
                metrics={k: round(v, 4) for k, v in metrics.items()},
                threads=torch.get_num_threads(),
                device=timing.device_name(device),
                commit=get_git_hash(digits=8),
                date=date.today().isoformat(),
            )
        )
    return noted


def count(run: Callable[[], None], model: nn.Module) -> float:
    """GFLOPs of an image, the mean of those of a run, which warms up, too."""
    spent = []
    handle = model.backbone.register_forward_hook(
        lambda backbone, *_: spent.append(backbone.cost.dynamic.mean().item())
    )
    run()
    handle.remove()
    return mean(spent) / 1e9


def load(folder: Path) -> tuple[nn.Module, Config]:
    """The model that was trained in a folder, and its config."""
    cfg = Config.fromfile(folder.with_name(f'{folder.name}.py'))
    weights = (folder / 'last_checkpoint').read_text()
    return launch.build_model(cfg, weights), cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    add('--threads', type=positive, default=torch.get_num_threads())
    add('--num-images', type=positive, default=16, help='default: 16')
    add('--repeats', type=positive, default=15, help='rounds (default: 15)')
    add('--work-dir', type=Path, default=Path('work_dirs/study'))
    add('--rows', type=Path, default=ROOT / 'docs/results.jsonl')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows(args.rows)
    for setting in args.settings:
        trained = rows.of(setting, 'finetuned', 'error')
        if trained and not rows.of(setting, 'time', 'dense', None, None):
            rows.add(
                measure(
                    setting, rows, args.work_dir, args.num_images, args.repeats
                )
            )
            print(f'{setting}: noted', flush=True)


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
