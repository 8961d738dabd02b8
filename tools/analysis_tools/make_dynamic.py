"""Make a static checkpoint dynamic, without labels.

From a few images of the training set it learns, block by block, what coarser
granularities would get wrong, and finds the one price at which the backbone
spends a ratio of its FLOPs. A host's own backbone is exchanged for its dynamic
form, which takes the same checkpoint. With --adapt the dense model then
teaches the dynamic one for some iterations on these images. It writes a
checkpoint and a config; test them as they are, or fine-tune. With --method
fast-path linear layers are fitted to the MLPs, for a training to start from.

Example::

    python tools/analysis_tools/make_dynamic.py CONFIG CHECKPOINT --ratio 0.5
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mmdge.calibration import (
    HoldRatio,
    adapt,
    calibrate,
    dense_outputs,
    distance,
    find_price,
    fit_fast_paths,
    latest_adaptation,
    load_images,
    price_slope,
    ratio_at_price,
    set_price,
    set_routing,
    settings_of,
    warn_if_far,
)
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.models import hosts
from mmdge.models.architectures import backbone_class
from mmdge.models.methods import (
    FastPath,
    Granularity,
    Merging,
    MixedPatches,
    Mixing,
)
from mmdge.models.methods.fast_path import STAGE
from mmdge.utils import UserError, checks, launch
from mmdge.utils.arguments import (
    add_calibration_options,
    positive,
    positive_number,
    ratio,
)

# Of a host's own backbone, by the names of operating_points.py.
METHODS = {
    'error': Granularity,
    'mixed': MixedPatches,
    'merging': Merging,
    'fast-path': FastPath,
}
# The official weight, 10, is of the part on the slow path; a fast path costs
# an eighth, so that 7/8 of that are the share of compute.
FAST_PATH_WEIGHT = 13.0
JUDGED = 16  # images, by which an adaptation is judged
# Hooks whose shares, warm-up and prices belong to other routers, or to an
# earlier calibration; here the budget is met.
REPLACED = ('CostHook', 'RoutingWarmupHook', 'RandomPriceHook', 'DistillHook')


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument(
        'checkpoint',
        help='weights of the model, or of its backbone alone, of any layout',
    )
    add_calibration_options(parser)
    parser.add_argument(
        '--ratio',
        type=ratio,
        help='dynamic over dense FLOPs to spend on average (default: 0.5)',
    )
    parser.add_argument(
        '--method',
        choices=METHODS,
        help="that a host's own backbone gets; a ViT can have mixed and "
        'merging, a Swin or a ConvNeXt fast-path, which is to be trained, see '
        'docs/budgets.md (default: error)',
    )
    parser.add_argument(
        '--also',
        type=ratio,
        nargs='+',
        default=[],
        metavar='RATIO',
        help='further ratios that the fine-tuned checkpoint is to serve: '
        'each training step draws one of them',
    )
    parser.add_argument(
        '--num-fit',
        type=positive,
        default=32,
        help='of the images, so many to fit the errors to (default: 32)',
    )
    parser.add_argument(
        '--adapt',
        type=positive,
        metavar='ITERS',
        help='let the dense model teach the dynamic one so many iterations, '
        "on batches of the training's size, without labels; the same command "
        'again goes on where it was interrupted (default: none)',
    )
    parser.add_argument(
        '--adapt-lr',
        type=positive_number,
        default=1e-4,
        metavar='LR',
        help='learning rate at its begin (default: 1e-4)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='folder for the new config and checkpoint (default: '
        'work_dirs/<config-stem>_dynamic-<ratio>)',
    )
    return parser.parse_args()


def route(cfg: Config, method: str | None = None) -> None:
    """Give the backbone the routing that is calibrated, without a price.

    A host's own gets ``method``, see METHODS. Defaults to None: ``'error'``.
    """
    launch.exchange_backbone(cfg, METHODS[method or 'error'])
    backbone = cfg.model.get('backbone', {})
    kind = backbone_class(backbone) or object
    if not issubclass(kind, (Granularity, Mixing, FastPath)):
        what = f'model.backbone is {backbone.get("type")}'
        if inside := hosts.wrapped(cfg.model, launch.scope_of(cfg)):
            what += f', and wrapped is {" and ".join(inside)}'
        raise UserError(
            f'{cfg.filename} has no backbone that is calibrated without '
            f'training: {what}; that can be a DGEPVT, DGEViT, MixedPatchViT '
            'and others of mmdge, or one of those that they stand for '
            f'({hosts.known_types()}), see docs/your_own_config.md'
        )
    if method and not issubclass(kind, METHODS[method]):
        raise UserError(
            f"--method {method} is for a host's own backbone; here set "
            f'model.backbone.type, which is {backbone.type}'
        )
    routings = {Mixing: 'effect', FastPath: 'learned', Granularity: 'error'}
    (routing,) = (
        name for kind_, name in routings.items() if issubclass(kind, kind_)
    )
    set_routing(backbone, routing)


def teach(
    args: argparse.Namespace,
    cfg: Config,
    model: nn.Module,
    known: nn.Module,
    images: list[torch.Tensor],
    folder: Path,
) -> None:
    """Adapt the backbone, or go on with that, as the arguments say.

    It is calibrated before and after. What brings the outputs of ``known``
    no nearer to the dense model's is undone.
    """
    backbone = model.backbone
    settings = settings_of(backbone, args.adapt, args.ratio, args.adapt_lr)
    latest, slope = latest_adaptation(folder, settings), None
    judged = images[:JUDGED]
    expected = dense_outputs(known, judged)
    calibrate(known, images, args.num_fit, args.ratio)
    before = distance(known, judged, expected)
    state = copy.deepcopy(backbone.state_dict())
    if latest is None:
        slope = price_slope(ratio_at_price(backbone, images), args.ratio)
    hold = HoldRatio(backbone, args.ratio, slope)
    adapt(
        *(cfg, model, backbone, args.adapt, args.adapt_lr, hold, folder),
        split=args.split,
        latest=latest,
    )
    try:
        calibrate(known, images, args.num_fit, args.ratio)
        after = distance(known, judged, expected)
    except UserError:  # no price meets the ratio with what it became
        after = math.inf
    said = f'from {before:.4g} to {after:.4g} from the dense outputs'
    if after < before:
        print(f'the adaptation moved it {said}')
        return
    print(f'the adaptation is undone: it moved the backbone {said}')
    backbone.load_state_dict(state)
    set_price(backbone, 0.0)


def check_fast_path(args: argparse.Namespace, backbone: FastPath) -> None:
    """Raise a UserError if what was asked for has no effect there."""
    if args.ratio or args.adapt or args.also:
        raise UserError(
            'fast paths have a keep_ratio in place of --ratio and --also, and '
            'are trained in place of --adapt: --cfg-options '
            'model.backbone.keep_ratio=0.5'
        )
    if backbone.frozen_stages > STAGE:
        raise UserError(
            f'frozen_stages={backbone.frozen_stages} would keep predictors '
            'and fast paths from training: --cfg-options '
            f'model.backbone.frozen_stages={STAGE}'
        )


def start_fast_paths(backbone: FastPath, images: list[torch.Tensor]) -> float:
    """Fit the fast paths; return the ratio that the predictors will have."""
    print(f'fitting fast paths to {len(images)} images')
    for name, share in fit_fast_paths(backbone, images).items():
        print(f'{name}: {share:.0%} of what varies in the MLP')
    with torch.no_grad():
        ratios = [backbone.ratios(image).mean().item() for image in images]
    return sum(ratios) / len(ratios)


def write(
    cfg: Config,
    model: nn.Module,
    whole: bool,
    ratio: float,
    folder: Path,
    prices: Sequence[float] = (),
    teacher: str | None = None,
    loss_weight: float = 0.0,
) -> Path:
    """Write checkpoint and config; return the config's path.

    ``prices`` are those of further budgets to train for; ``teacher`` is the
    checkpoint that the fine-tuning is to learn from, beside the labels;
    ``loss_weight`` is that of the budget.
    """
    cost = dict(type='mmdge.CostHook', budget=ratio, loss_weight=loss_weight)
    launch.replace_hooks(cfg, *REPLACED, cost=cost)
    if teacher:
        distill = dict(
            type='mmdge.DistillHook',
            teacher=teacher,
            targets=[dict(module='backbone', loss='relative')],
        )
        launch.replace_hooks(cfg, distill=distill)
    if prices:
        draw = dict(type='mmdge.RandomPriceHook', prices=[0.0, *prices])
        launch.replace_hooks(cfg, price=draw)
    name = f'{Path(cfg.filename).stem}_dynamic-{ratio:g}.pth'
    return launch.write_run(cfg, model, folder / name, whole)


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    checks.check_datasets(cfg, [args.split])
    route(cfg, args.method)
    model = launch.build_model(cfg, args.checkpoint)
    whole = checks.is_whole_model(args.checkpoint, model)
    backbone = find_dynamic_backbone(model, 'make_dynamic.py')
    # Heads without weights would not tell what counts.
    known = model if whole else nn.ModuleDict(dict(backbone=backbone))
    stem = Path(args.config).stem
    made = 'fast-path'
    if isinstance(backbone, FastPath):
        check_fast_path(args, backbone)
    else:
        args.ratio = args.ratio or 0.5
        made = f'{args.ratio:g}'
    folder = args.out or Path(f'work_dirs/{stem}_dynamic-{made}')
    folder.mkdir(parents=True, exist_ok=True)
    images = load_images(cfg, model, args.num_images, args.split)
    if isinstance(backbone, FastPath):
        spent = round(start_fast_paths(backbone, images), 3)
        print(f'Ratio {spent:.3f}, by its keep_ratio')
        path = write(
            *(cfg, model, whole, spent, folder),
            teacher=args.checkpoint,
            loss_weight=FAST_PATH_WEIGHT,
        )
        print(
            f'wrote {path} and {path.with_suffix(".pth")}\nits predictors '
            f'know nothing yet; next:\n  python tools/train.py {path}'
        )
        return
    if args.adapt:
        teach(args, cfg, model, known, images, folder / 'adapt')
    else:
        calibrate(known, images, args.num_fit, args.ratio)
    ratio_at = ratio_at_price(backbone, images)
    spent = ratio_at(0.0)
    print(f'Ratio {spent:.3f} on the calibration images')
    warn_if_far(args.ratio, spent)
    written = partial(
        write,
        *(cfg, model, whole, args.ratio, folder),
        teacher=args.checkpoint if args.adapt else None,
    )
    # Before other ratios are tried, which may be out of reach.
    path = written()
    prices = []
    for other in args.also:
        price, spent = find_price(ratio_at, other)
        print(f'ratio {spent:.3f} at a price of {price:.4g}')
        warn_if_far(other, spent)
        prices.append(round(price, 6))
    if prices:
        path = written(prices=prices)
    print(f'wrote {path} and {path.with_suffix(".pth")}\nnext:')
    if whole:
        print(f'  python tools/test.py {path} {path.with_suffix(".pth")}')
    print(f'  python tools/train.py {path}  # fine-tune: docs/budgets.md')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
