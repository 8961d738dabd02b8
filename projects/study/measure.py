"""Time the checkpoints of the study, on a machine that does nothing else.

For each setting the backbone that was fine-tuned by error is run on images of
its validation set, one by one and as one batch, at the prices of its rows, in
turns with its dense twin and, where there is one, the smaller static model.
What is noted already isn't timed again.

Example::

    python projects/study/measure.py --threads 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import mean, median

import torch
from mmengine.config import Config
from mmengine.utils import get_git_hash
from plan import BUDGET, SETTINGS
from rows import ROWS, Row, Rows
from torch import Tensor, nn

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
    # Arm, budget, ratio asked; what it runs on, and the price.
    subjects = {
        ('error', BUDGET, row['asked']): (model.backbone, row['price'])
        for row in points
    }
    subjects['dense', None, None] = (model.backbone, None)
    smaller = folder / f'scratch-smaller-{BUDGET:g}'
    if (smaller / 'last_checkpoint').exists():
        other, _ = load(smaller)
        subjects['smaller', BUDGET, None] = (other.backbone, None)

    def runs_on(batches: list[Tensor]) -> dict[tuple, Callable]:
        return {
            key: runs_at_prices(
                backbone, [] if price is None else [price], batches
            )[0]
            for key, (backbone, price) in subjects.items()
        }

    single, batch = runs_on(images), runs_on([torch.cat(images)])
    flops = {key: count(run, subjects[key][0]) for key, run in single.items()}
    device = images[0].device
    times = timing.interleave(single, range(repeats), device)
    batch_times = timing.interleave(batch, range(repeats), device)
    noted = []
    for key, run in single.items():
        lower, middle, upper = timing.Quartiles.of(times[key])
        metrics = {
            'backbone/GFLOPs': flops[key],
            'lower': 1e3 * lower / len(images),
            'upper': 1e3 * upper / len(images),
            'ms_in_batch': 1e3 * median(batch_times[key]) / len(images),
            'MB': timing.footprint(run, device).memory / 2**20,
        }
        noted.append(
            dict(
                zip(('arm', 'budget', 'asked'), key, strict=True),
                setting=setting,
                seed=0,
                phase='time',
                metric='ms',
                value=round(1e3 * middle / len(images), 3),
                metrics={k: round(v, 4) for k, v in metrics.items()},
                batch=len(images),
                threads=torch.get_num_threads(),
                device=timing.device_name(device),
                commit=get_git_hash(digits=8),
                date=date.today().isoformat(),
            )
        )
    return noted


def count(run: Callable[[], None], backbone: nn.Module) -> float:
    """GFLOPs of an image, the mean of those of a run, which warms up, too."""
    spent = []
    handle = backbone.register_forward_hook(
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
    add('--rows', type=Path, default=ROWS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows(args.rows)
    for setting in args.settings:
        trained = rows.of(setting, 'finetuned', 'error')
        timed = rows.of(setting, 'time', 'dense', None, None)
        # All of a setting in turns, so that they are comparable.
        if trained and not timed:
            rows.add(
                measure(
                    setting, rows, args.work_dir, args.num_images, args.repeats
                )
            )
            print(f'{setting}: noted', flush=True)


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
