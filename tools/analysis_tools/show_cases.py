"""Show where routing costs nothing, and where it hurts.

For each image of the validation set the loss of the checkpoint is taken as it
routes and as its dense twin. The images whose loss rises least and most are
drawn, with the queries that their regions got.

Example::

    python tools/analysis_tools/show_cases.py CONFIG CHECKPOINT --out cases.png
"""

from __future__ import annotations

import argparse
import sys

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.utils import track_iter_progress
from torch import nn

from mmdge.datasets import image_loader
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.engine.hooks.granularity_vis_hook import (
    draw_granularity,
    stage_panels,
    to_picture,
)
from mmdge.utils import UserError, checks, launch
from mmdge.utils.arguments import positive


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument(
        '--num-cases',
        type=positive,
        default=2,
        help='of each kind (default: 2)',
    )
    parser.add_argument(
        '--num-images',
        type=positive,
        help='look at a random subset only (default: the whole set)',
    )
    parser.add_argument('--out', required=True, help='the picture to write')
    return parser.parse_args()


def annotate_first(cfg: Config) -> None:
    """Load annotations as in training: all of them, and before resizing.

    Validation leaves them as they are, to compare at the original size, and
    may do without masks.
    """
    trained = [
        step
        for _, node in checks.walk(cfg.get('train_dataloader'))
        for step in node.get('pipeline') or []
        if checks.type_name(step).endswith('LoadAnnotations')
    ]
    for _, node in checks.walk(cfg.val_dataloader):
        if 'pipeline' not in node:
            continue
        steps = [
            trained[0]
            if trained and checks.type_name(step).endswith('LoadAnnotations')
            else step
            for step in node['pipeline']
        ]
        node['pipeline'] = sorted(
            steps, key=lambda step: 'Load' not in str(step['type'])
        )


def loss(model: nn.Module, data: dict) -> float:
    """Sum of the losses of a preprocessed batch."""
    torch.manual_seed(0)  # two-stage detectors sample
    total, _ = model.parse_losses(model(**data, mode='loss'))
    return total.item()


@torch.no_grad()
def collect(model: nn.Module, cfg: Config, number: int | None) -> list[tuple]:
    """Rise of the loss, image and panels of each image, least rise first."""
    backbone = find_dynamic_backbone(model, 'show_cases.py')
    loader = image_loader(cfg, number=number)
    cases = []
    for data in track_iter_progress((loader, len(loader)), file=sys.stderr):
        data = model.data_preprocessor(data, False)
        with backbone.as_dense_twin():
            dense = loss(model, data)
        rise = loss(model, data) - dense
        (image,) = data['inputs']
        height, width = data['data_samples'][0].img_shape
        picture = to_picture(image)[:height, :width]
        panels = stage_panels(backbone.cost, 0, (height, width))
        cases.append((rise, picture, panels))
    return sorted(cases, key=lambda case: case[0])


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    checks.check_output(args.out, '--out')
    checks.check_datasets(cfg, ['val'])
    annotate_first(cfg)
    model = launch.build_model(cfg, args.checkpoint)
    cases = collect(model, cfg, args.num_images)
    rises = np.array([rise for rise, _, _ in cases])
    shown = cases[: args.num_cases] + cases[-args.num_cases :]
    picture = draw_granularity(
        [(image, panels) for _, image, panels in shown],
        [f'loss {rise:+.3f}' for rise, _, _ in shown],
    )
    if not cv2.imwrite(args.out, picture[..., ::-1]):
        raise UserError(f'--out {args.out} cannot be written')
    low, middle, high = np.percentile(rises, [5, 50, 95])
    print(
        f'{len(cases)} images: the loss rises by {rises.mean():.4f} on '
        f'average, {middle:.4f} in the median, p5 {low:.4f}, p95 {high:.4f}\n'
        f'wrote {args.out}: the {args.num_cases} that lose least, then the '
        f'{args.num_cases} that lose most'
    )


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
