"""Count the FLOPs of a config on the real images of its validation set.

The FLOPs of a dynamic model depend on its weights and on the images, so give
the checkpoint that you mean. Unit: 1 GFLOPs = 1e9 multiply-adds, of
convolutions, linear layers and both attention products. Counted is what a
prediction runs, sliding windows and the proposals of a second stage included.
The backbone is counted by its formulae, and image by image compared with what
PyTorch's counter saw; the rest of the model by the counter.

Example::

    python tools/analysis_tools/get_flops.py CONFIG CHECKPOINT
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from torch import nn

from mmdge.datasets import image_loader
from mmdge.models.architectures import Backbone
from mmdge.models.cost import Cost
from mmdge.utils import UserError, checks, launch
from mmdge.utils.arguments import positive
from mmdge.utils.counting import multiply_adds
from mmdge.utils.tables import print_table

PARTS = ('backbone', 'neck', 'head')


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


@torch.no_grad()
def count(
    model: nn.Module, loader: Iterable, num_images: int
) -> dict[str, np.ndarray]:
    """Predict ``num_images`` images of ``loader`` by ``model``.

    A model may have several dynamic backbones, as a teacher and its student;
    those count that a prediction runs, as often as it does.

    Returns:
        dict[str, np.ndarray]: Multiply-adds of each image: of what ran in
        each of ``PARTS``, ``(N,)``; ``'dense'``, of the plain backbone,
        ``(N,)``; ``'stages'``, dynamic and dense, ``(N, S, 2)``. And
        ``'spread'``, :attr:`Cost.region_spread`, ``(N,)``.

    Raises:
        UserError: If it runs no dynamic backbone.
        RuntimeError: If the formulae of one don't give what ran.
    """
    # The counter follows gradients even where there are none.
    model.requires_grad_(False)
    counts, costs, root = defaultdict(list), [], type(model).__name__
    handles, backbones, necks = [], [], []
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            backbones.append(f'{root}.{name}')
            handles.append(
                module.register_forward_hook(
                    lambda module, *_: costs.append(module.cost.detach())
                )
            )
        elif name.split('.')[-1] == 'neck':
            necks.append(f'{root}.{name}')
    for data in track_iter_progress((loader, num_images), file=sys.stderr):
        costs.clear()
        run = partial(predict, model, data)
        whole, ran, neck = multiply_adds(run, backbones, necks)
        if not costs:
            raise UserError(
                'get_flops.py needs a dynamic backbone, but a prediction runs '
                "none; set e.g. model.backbone.type='mmdge.DGEPVT'"
            )
        cost = Cost.add_up(costs)
        formula = cost.dynamic.sum().item()
        if formula != ran:
            raise RuntimeError(
                f'the formulae give {formula:.0f} multiply-adds for the '
                f"backbone, PyTorch's counter {ran:.0f}; please report this"
            )
        # The hosts call the head's methods, which the counter can't name.
        for part, flops in zip(
            PARTS, (ran, neck, whole - ran - neck), strict=True
        ):
            counts[part].append(flops)
        counts['dense'].append(cost.dense.sum().item())
        counts['spread'].append(cost.region_spread.mean().item())
        counts['stages'].append(
            [
                [
                    sum(getattr(s, kind).sum().item() for s in same if s)
                    for kind in ('dynamic', 'dense')
                ]
                for same in zip_longest(*(cost.stages for cost in costs))
            ]
        )
    for handle in handles:
        handle.remove()
    return {name: np.array(values) for name, values in counts.items()}


def predict(model: nn.Module, data: Any) -> None:
    """Predict; what a model without predictions does is its forward."""
    try:
        model.test_step(data)
    except RuntimeError as err:
        if 'invalid mode' not in str(err).lower():
            raise
        model(**model.data_preprocessor(data, False), mode='tensor')


def summary(counts: dict[str, np.ndarray]) -> dict:
    """Distributions over the images, in GFLOPs."""
    parts = {part: distribution(counts[part] / 1e9) for part in PARTS}
    whole = sum(counts[part] for part in PARTS)
    stages = counts['stages'].mean(0) / 1e9
    return dict(
        unit='1e9 multiply-adds',
        num_images=len(whole),
        parts=parts,
        model=distribution(whole / 1e9),
        backbone_dense=distribution(counts['dense'] / 1e9),
        backbone_ratio=distribution(counts['backbone'] / counts['dense']),
        region_spread=float(counts['spread'].mean()),
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
    """Print a summary as tables."""
    rows = {
        **figures['parts'],
        'whole model': figures['model'],
        'dense backbone': figures['backbone_dense'],
        'backbone / dense': figures['backbone_ratio'],
    }
    print_table(
        f'GFLOPs per image (1e9 multiply-adds), {figures["num_images"]} '
        'images, batch 1',
        ['part', *figures['model']],
        [(name, *row.values()) for name, row in rows.items()],
    )
    print_table(
        'Backbone, mean per image',
        ('stage', 'GFLOPs', 'dense', 'ratio'),
        [
            (number, s['dynamic'], s['dense'], s['dynamic'] / s['dense'])
            for number, s in enumerate(figures['stages'], 1)
        ],
        f'Spread over regions: {figures["region_spread"]:.3f}',
        'Counted: convolutions, linear layers, attention products; not: '
        'norms, softmax, activations, pooling, gathers. The backbone was '
        "counted by formula and by PyTorch's counter: equal on every image.",
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
