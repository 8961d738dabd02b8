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
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmdge.calibration import (
    find_price,
    load_images,
    ratio_at_price,
    warn_if_far,
)
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.utils import checks, launch
from mmdge.utils.arguments import add_calibration_options, ratio


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
    if args.out and not args.out.endswith('.py'):
        parser.error(f'--out must end in .py, not {args.out!r}')
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
    table = Table(title=f'On {len(images)} images of the {args.split} set')
    for column in ('asked', 'ratio', 'price'):
        table.add_column(column, justify='right')
    prices, ratio_at = [], ratio_at_price(backbone, images)
    for asked in args.ratio:
        price, spent = find_price(ratio_at, asked)
        warn_if_far(asked, spent)
        table.add_row(f'{asked:g}', f'{spent:.4f}', f'{price:.6g}')
        prices.append(price)
    Console(width=100).print(table)
    for asked, price in zip(args.ratio, prices, strict=True):
        option = f'--cfg-options model.backbone.price={price:.6g}'
        print(f'{option}   # ratio {asked:g}')
    if args.out:
        cfg.model.backbone.price = prices[-1]
        for hook in cfg.get('custom_hooks') or []:
            if checks.type_name(hook) == 'CostHook':
                hook.budget = args.ratio[-1]
        Path(args.out).write_text(cfg.pretty_text)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
