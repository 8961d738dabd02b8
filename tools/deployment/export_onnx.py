"""Export a model of mmdet, mmseg or mmpretrain to ONNX, routing inside.

The file maps normalised images to raw outputs; what makes boxes, masks or
labels of them stays in the host. A routed backbone has two forms:

- constant: every image gets the same number of cells of each candidate, the
  mean over ``--num-images``; all shapes are constants, any batch;
- adaptive: the router decides image by image, as at test; batch 1.

Before the file is written, ONNX Runtime must give PyTorch's outputs.

Example::

    python tools/deployment/export_onnx.py CONFIG CHECKPOINT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from mmdge.calibration import fix_shapes
from mmdge.calibration.images import tested_loader
from mmdge.deployment import (
    SCOPES,
    Description,
    RawOutputs,
    backbone_inputs,
    batch_of,
    common_size,
    digest,
    export_onnx,
    part_of,
    require_packages,
    resized,
    shown,
)
from mmdge.models.architectures import Backbone
from mmdge.utils import UserError, checks, launch
from mmdge.utils.arguments import positive
from mmdge.version import __version__


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='default: CHECKPOINT with .onnx as its end',
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--size',
        type=positive,
        nargs=2,
        metavar=('H', 'W'),
        help='of the images in pixels (default: what the test pipeline gives)',
    )
    size.add_argument(
        '--dynamic',
        action='store_true',
        help='any multiple of the largest stride; if nothing is routed',
    )
    parser.add_argument(
        '--batch', type=positive, default=1, help='images per run (default: 1)'
    )
    parser.add_argument(
        '--form',
        choices=['constant', 'adaptive'],
        default='constant',
        help='of a routed backbone (default: constant)',
    )
    parser.add_argument(
        '--scope',
        choices=SCOPES,
        default='model',
        help="backbone: its maps alone, of any host's model (default: model)",
    )
    parser.add_argument(
        '--num-images',
        type=positive,
        default=32,
        help='images of the training set, without labels, from which size, '
        'shares and FLOPs are measured (default: 32)',
    )
    return parser.parse_args()


def to_multiple(image: Tensor, divisor: int, scale: float = 1.0) -> Tensor:
    """Bring an image to sides that ``divisor`` divides, two at least."""
    sides = (round(side * scale / divisor) for side in image.shape[-2:])
    return resized(image, tuple(divisor * max(2, n) for n in sides), False)


def main() -> None:
    args = parse_args()
    require_packages('onnx', 'onnxscript', 'onnxruntime')
    out = args.out or Path(args.checkpoint).with_suffix('.onnx')
    checks.check_output(out, '--out')
    checks.check_checkpoint(args.checkpoint)
    cfg = launch.load_config(args.config, args.cfg_options)
    checks.check_datasets(cfg, ['train', 'val'])
    model = launch.build_model(cfg)
    part_of(model, args.scope)
    whole = launch.load_weights(model, args.checkpoint)
    if not whole and args.scope == 'model':
        raise UserError(
            f'{args.checkpoint} has weights of the backbone alone, or of '
            'another model; name one of this config, or export --scope '
            'backbone'
        )
    model.cpu().eval()
    pads = launch.host_of(cfg) == 'mmdet'
    ours = isinstance(model.backbone, Backbone)
    form = args.form if ours and model.backbone.routers else 'dense'
    if form == 'adaptive' and args.batch > 1:
        raise UserError(
            '--form adaptive is for one image per run, because each has its '
            'own number of rows; leave out --batch, or export --form constant'
        )
    if form != 'dense' and args.dynamic:
        raise UserError(
            '--dynamic is for models in which nothing is routed; name a size '
            'by --size H W'
        )

    loader = tested_loader(cfg, args.num_images, 'train')
    images = backbone_inputs(model, loader)
    size, divisor = args.size and tuple(args.size), 1
    if args.dynamic:
        divisor = model.backbone.strides[-1] if ours else 32
        images = [to_multiple(image, divisor) for image in images[:1]]
    else:
        size = size or common_size(images, pads)
        images = [resized(image, size, pads) for image in images]
    if form == 'constant':
        fix_shapes(model.backbone, images)
    flops, shares = None, None
    if ours:
        costs = []
        for image in images if form == 'adaptive' else images[:1]:
            with torch.no_grad():
                model.backbone(image)
            cost = model.backbone.cost
            costs.append(torch.cat([cost.dynamic, cost.dense]))
        flops = tuple(torch.stack(costs).mean(0).tolist())
    if form == 'constant':
        routers = model.backbone.routers_by_name()
        shares = {k: r.fixed_shares for k, r in routers.items()}
    told = Description(
        version=__version__,
        config=Path(args.config).name,
        scope=args.scope,
        form=form,
        size=size,
        divisor=divisor,
        batch=args.batch,
        pads=pads,
        weights=digest(model),
        flops=flops,
        num_images=len(images),
        shares=shares,
    )
    raw = RawOutputs(
        model, args.scope, with_flops=form == 'adaptive' or args.dynamic
    )
    first, last = images[0], images[::-1]
    if args.dynamic:  # it is checked on another size than the one followed
        first = to_multiple(first, divisor, 0.75)
    batches = [batch_of([first], args.batch), batch_of(last, args.batch)]
    worst = export_onnx(raw, batches, out, told)
    at = f'{shown(size)} pixels' if size else f'multiples of {divisor} pixels'
    print(f'wrote {out}: {form}, {at}, batch {args.batch}')
    print(f'largest difference to PyTorch: {worst:.2g}')
    if flops:
        dynamic, dense = (value / 1e9 for value in flops)
        print(
            f'backbone, per image: {dynamic:.4g} GFLOPs of {dense:.4g} dense, '
            f'ratio {dynamic / dense:.3f}'
        )


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
