"""Find the price at which a trained router spends a given ratio of FLOPs.

What a router spends at test is not what it was trained for: other images,
another budget, or, with the paper's router, argmax in place of sampling.

Example::

    python tools/analysis_tools/calibrate_budget.py CONFIG CHECKPOINT \
        --ratio 0.4
"""

from __future__ import annotations

import argparse
import sys

from mmdge.calibration import (
    find_price,
    load_images,
    ratio_at_price,
    warn_if_far,
)
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.utils import checks, launch
from mmdge.utils.arguments import add_calibration_options, ratio
from mmdge.utils.tables import print_table


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument(
        '--ratio',
        type=ratio,
        nargs='+',
        required=True,
        help='dynamic over dense FLOPs to spend on average',
    )
    add_calibration_options(parser)
    parser.add_argument(
        '--out',
        help='write the config here, with the price of the (single) ratio, '
        'which becomes the budget of CostHook',
    )
    args = parser.parse_args()
    if args.out and len(args.ratio) > 1:
        parser.error('--out is for a single --ratio')
    return args


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    if args.out:
        checks.check_output(args.out, '--out')
    checks.check_datasets(cfg, [args.split])
    model = launch.build_model(cfg, args.checkpoint)
    backbone = find_dynamic_backbone(model, 'calibrate_budget.py')
    images = load_images(cfg, model, args.num_images, args.split)
    found, ratio_at = [], ratio_at_price(backbone, images)
    for asked in args.ratio:
        price, spent = find_price(ratio_at, asked)
        warn_if_far(asked, spent)
        found.append((f'{asked:g}', f'{spent:.4f}', f'{price:.6g}'))
    print_table(
        f'On {len(images)} images of the {args.split} set',
        ('asked', 'ratio', 'price'),
        found,
    )
    for asked, _, shown in found:
        option = f'--cfg-options model.backbone.price={shown}'
        print(f'{option}   # ratio {asked}')
    if args.out:
        cfg.model.backbone.price = price
        for hook in launch.hooks_of(cfg):
            if checks.type_name(hook) == 'CostHook':
                hook.budget = args.ratio[-1]
        cfg.dump(args.out)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
