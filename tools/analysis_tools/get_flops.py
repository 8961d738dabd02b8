"""Count the FLOPs of a config on the real images of its validation set.

The FLOPs of a dynamic model depend on its weights and on the images, so give
the checkpoint that you mean. Unit: 1 GFLOPs = 1e9 multiply-adds, of
convolutions, linear layers and both attention products. The backbone is
counted by its formulae, and image by image compared with what PyTorch's
counter saw; the rest of the model by the counter. Each image passes whole,
also where the config predicts by sliding windows.

Example::

    python tools/analysis_tools/get_flops.py CONFIG CHECKPOINT
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from rich.console import Console
from rich.table import Table
from torch import nn

from mmdge.datasets import image_loader
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.utils import checks, launch
from mmdge.utils.arguments import positive
from mmdge.utils.counting import flop_counter


def parse_args():
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='weights to count with (default: random ones, whose routing '
        'says little)',
    )
    parser.add_argument(
        '--num-images',
        type=positive,
        help='count a random subset only (default: the whole set)',
    )
    parser.add_argument('--json', help='write the figures to this file, too')
    return parser.parse_args()


class Counts:
    """Multiply-adds of each image, part by part.

    Attributes:
        parts (dict): Name of a part of the model to one number per image;
            ``'backbone'`` is what ran.
        dense (list): Of the plain backbone, per image.
        stages (list): ``(dynamic, dense)`` per stage, per image.
        spread (list): ``Cost.region_spread`` per image.
    """

    def __init__(self) -> None:
        self.parts = defaultdict(list)
        self.dense, self.stages, self.spread = [], [], []


@torch.no_grad()
def count(model: nn.Module, loader: Iterable, num_images: int) -> Counts:
    """Run ``num_images`` images of ``loader`` through ``model``."""
    backbone = find_dynamic_backbone(model, 'get_flops.py')
    root = type(model).__name__
    counts = Counts()
    for data in track_iter_progress((loader, num_images), file=sys.stderr):
        data = model.data_preprocessor(data, False)
        with flop_counter() as counter:
            model(**data, mode='tensor')
        cost = backbone.cost.detach()
        seen = counter.get_flop_counts()
        neck = counted(seen, f'{root}.neck')
        ran = counted(seen, f'{root}.backbone')
        check_formula(cost.dynamic.item(), ran)
        counts.parts['backbone'].append(ran)
        counts.parts['neck'].append(neck)
        # The hosts call the head's methods, which the counter can't name.
        counts.parts['head'].append(counted(seen, 'Global') - ran - neck)
        counts.dense.append(cost.dense.item())
        counts.stages.append(
            [(s.dynamic.item(), s.dense.item()) for s in cost.stages]
        )
        counts.spread.append(cost.region_spread.item())
    return counts


def counted(seen: dict, module: str) -> float:
    """Multiply-adds that PyTorch's counter saw in a module."""
    return sum(seen.get(module, {}).values()) / 2


def check_formula(formula: float, counted: float) -> None:
    """Refuse to print figures that are not what ran."""
    if formula != counted:
        raise RuntimeError(
            f'the formulae give {formula:.0f} multiply-adds for the backbone, '
            f"PyTorch's counter {counted:.0f}; please report this"
        )


def summary(counts: Counts) -> dict:
    """Distributions over the images, in GFLOPs."""
    dense = np.array(counts.dense)
    figures = {
        name: distribution(np.array(values) / 1e9)
        for name, values in counts.parts.items()
    }
    total = np.sum(list(counts.parts.values()), axis=0)
    ratio = np.array(counts.parts['backbone']) / dense
    stages = np.array(counts.stages).mean(0) / 1e9
    return dict(
        unit='1e9 multiply-adds',
        num_images=len(dense),
        parts=figures,
        model=distribution(total / 1e9),
        backbone_dense=distribution(dense / 1e9),
        backbone_ratio=distribution(ratio),
        region_spread=float(np.mean(counts.spread)),
        stages=[dict(dynamic=d, dense=s) for d, s in stages.tolist()],
    )


def distribution(values: np.ndarray) -> dict[str, float]:
    """Mean, spread and quantiles of one number per image."""
    quantiles = np.percentile(values, [0, 5, 50, 95, 100])
    names = ('min', 'p5', 'p50', 'p95', 'max')
    return {
        'mean': float(values.mean()),
        'std': float(values.std().round(9)),  # to the multiply-add
        **dict(zip(names, quantiles.tolist(), strict=True)),
    }


def report(figures: dict) -> None:
    """Print a summary as a table."""
    table = Table(
        title=f'GFLOPs per image (1e9 multiply-adds), '
        f'{figures["num_images"]} images, batch 1'
    )
    columns = list(figures['model'])
    for column in ('part', *columns):
        table.add_column(
            column,
            justify='left' if column == 'part' else 'right',
            no_wrap=True,
        )
    rows = {
        **figures['parts'],
        'whole model': figures['model'],
        'dense backbone': figures['backbone_dense'],
        'backbone / dense': figures['backbone_ratio'],
    }
    for name, row in rows.items():
        table.add_row(name, *(f'{row[c]:.4g}' for c in columns))
    stages = Table(title='Backbone, mean per image')
    for column in ('stage', 'GFLOPs', 'dense', 'ratio'):
        stages.add_column(column, justify='right')
    for number, stage in enumerate(figures['stages'], 1):
        ratio = stage['dynamic'] / stage['dense']
        cells = (stage['dynamic'], stage['dense'], ratio)
        stages.add_row(str(number), *(f'{cell:.4g}' for cell in cells))
    console = Console(width=100)
    console.print(table)
    console.print(stages)
    console.print(f'Spread over regions: {figures["region_spread"]:.3f}')
    console.print(
        'Counted: convolutions, linear layers, attention products; not: '
        'norms, softmax, activations, pooling, gathers. The backbone was '
        "counted by formula and by PyTorch's counter: equal on every image."
    )


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    if args.json:
        checks.check_output(args.json, '--json')
    checks.check_datasets(cfg, ['val'])
    if not args.checkpoint:
        print('no checkpoint: random weights, so the routing says little')
    model = launch.build_model(cfg, args.checkpoint)
    loader = image_loader(cfg, number=args.num_images)
    if args.num_images:
        print(f'{len(loader)} images, chosen at random')
    figures = summary(count(model, loader, len(loader)))
    report(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2))


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
