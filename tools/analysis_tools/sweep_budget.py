"""Walk the budgets of one checkpoint: accuracy, FLOPs and time of each.

For each ratio asked for, the price is found on images of the training set,
and the model is evaluated at that price on its test set; or the prices are
given. Among the metrics are the correlations of the ratio with what is in the
images. Time is that of the backbone alone, in turns on the same images.
Everything is written to a folder: ``sweep.json`` and the logs; report.py draws
them.

Example::

    python tools/analysis_tools/sweep_budget.py CONFIG CHECKPOINT \
        --ratio 0.35 0.5 0.7 --out work_dirs/sweep
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from mmdge.calibration import (
    find_price,
    load_images,
    ratio_at_price,
    runs_at_prices,
    set_price,
    warn_if_far,
)
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.evaluation import with_metrics
from mmdge.models.architectures import Backbone
from mmdge.utils import checks, launch, timing
from mmdge.utils.arguments import add_calibration_options, positive, ratio
from mmdge.utils.tables import print_table

# The first of these among the metrics is the accuracy, else any.
ACCURACY = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU', 'accuracy/top1')


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='weights of the model')
    points = parser.add_mutually_exclusive_group(required=True)
    points.add_argument(
        '--ratio',
        type=ratio,
        nargs='+',
        default=[],
        help='ratios of dynamic to dense FLOPs to calibrate and evaluate',
    )
    points.add_argument(
        '--price', type=float, nargs='+', default=[], help='prices to evaluate'
    )
    add_calibration_options(parser)
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        help='rounds of timing; 0 for none (default: 5)',
    )
    parser.add_argument(
        '--num-timed',
        type=positive,
        default=8,
        help='images of each round (default: 8)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='folder to write to (default: work_dirs/<config-stem>_sweep)',
    )
    return parser.parse_args()


def build_runner(cfg: Config, checkpoint: str) -> Runner:
    """Build a runner that tests with these weights, whatever the price."""
    cfg.load_from, cfg.resume = checkpoint, False
    # Averaged weights are the checkpoint's own already.
    cost = dict(type='mmdge.CostHook', budget=1.0, loss_weight=0.0)
    launch.replace_hooks(cfg, '*EMAHook', 'CostHook', cost=cost)
    cfg.test_evaluator = with_metrics(
        cfg.get('test_evaluator'),
        dict(type='mmdge.BackboneFLOPs'),
        dict(type='mmdge.RatioByContent'),
    )
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    return runner


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The single numbers; NumPy's types, some of them, JSON does not know."""
    found = {}
    for key, value in metrics.items():
        # Not of a list by class, or a confusion matrix.
        with suppress(TypeError, ValueError, RuntimeError):
            found[key] = float(value)
    return found


def last_evaluation(runner: Runner) -> str | None:
    """The log line with the metrics of the last evaluation."""
    log = Path(runner.log_dir, f'{runner.timestamp}.log')
    for line in reversed(log.read_text().splitlines()):
        if '(test)' in line and 'backbone/' in line:
            return line
    return None


def time_backbone(
    backbone: Backbone,
    prices: list[float],
    images: list[Tensor],
    repeats: int,
) -> list[timing.Quartiles | None]:
    """Seconds per image at each price, then of the dense twin, in turns."""
    if not repeats:
        return [None] * (len(prices) + 1)
    runs = dict(enumerate(runs_at_prices(backbone, prices, images)))
    for warm_up in runs.values():
        warm_up()
    times = timing.interleave(runs, range(repeats), images[0].device)
    return [
        timing.Quartiles.of([t / len(images) for t in times[number]])
        for number in runs
    ]


def accuracy_of(points: list[dict[str, Any]]) -> str:
    """The metric that counts, of the first where there are several sets.

    It is no part of an evaluation in which nothing was detected.
    """
    found = [key for point in points for key in point['metrics']]
    known = [k for m in ACCURACY for k in found if f'/{k}'.endswith(f'/{m}')]
    others = [key for key in found if not key.startswith('backbone/')]
    return (known + others + list(ACCURACY))[0]


def summarise(points: list[dict[str, Any]], metric: str) -> None:
    """Print the points as a table."""
    columns = {
        metric: metric,
        'GFLOPs': 'backbone/GFLOPs',
        'p95': 'backbone/GFLOPs_p95',
        'ratio': 'backbone/FLOPs_ratio',
        'std': 'backbone/FLOPs_ratio_std',
    }
    rows = []
    for point in points:
        asked, took = point['ratio_asked'], '-'
        values = [point['metrics'].get(k, math.nan) for k in columns.values()]
        if point['seconds']:
            low, middle, high = (1000 * s for s in point['seconds'].values())
            took = f'{middle:.1f} ({low:.1f}-{high:.1f})'
        asked = '-' if asked is None else f'{asked:g}'
        rows.append([asked, point['price'], *values, took])
    print_table(
        'One checkpoint, many budgets',
        ('asked', 'price', *columns, 'ms (quartiles)'),
        rows,
        width=120,
    )


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    stem = Path(args.config).stem
    folder = args.out or Path(f'work_dirs/{stem}_sweep')
    cfg.work_dir = str(folder)
    checks.check_checkpoint(args.checkpoint)
    checks.check_datasets(cfg, ['test', args.split])
    folder.mkdir(parents=True, exist_ok=True)
    runner = build_runner(cfg, args.checkpoint)
    model = runner.model.eval()
    backbone = find_dynamic_backbone(model, 'sweep_budget.py')
    images = []
    if args.ratio or args.repeats:
        images = load_images(cfg, model, args.num_images, args.split)

    wanted = [(price, None, None) for price in args.price]
    ratio_at = ratio_at_price(backbone, images) if args.ratio else None
    for asked in args.ratio:
        price, spent = find_price(ratio_at, asked)
        warn_if_far(asked, spent)
        wanted.append((price, asked, spent))
    points, file = [], folder / 'sweep.json'
    written = dict(
        config=args.config, checkpoint=args.checkpoint, metric=None,
        points=points, seconds_dense=None,
    )  # fmt: skip
    for price, asked, spent in wanted:
        set_price(backbone, price)
        metrics = scalars(runner.test())
        model.eval()
        points.append(
            dict(
                price=price,
                ratio_asked=asked,
                ratio_calibrated=spent,
                metrics=metrics,
                log=last_evaluation(runner),
                routing=cfg.model.backbone.get('routing', 'learned'),
                seconds=None,
            )
        )
        written['metric'] = accuracy_of(points)
        # What may be interrupted later is written now.
        file.write_text(json.dumps(written, indent=2))
    timed = images[: args.num_timed]
    prices = [price for price, _, _ in wanted]
    times = time_backbone(backbone, prices, timed, args.repeats)
    *seconds, dense = [taken and taken._asdict() for taken in times]
    for point, taken in zip(points, seconds, strict=True):
        point['seconds'] = taken
    written['seconds_dense'] = dense
    file.write_text(json.dumps(written, indent=2))
    summarise(points, written['metric'])
    if dense:
        print(f'The dense twin takes {1000 * dense["median"]:.1f} ms.')
    print(
        f'wrote {file}; to draw it:\n'
        f'  python tools/analysis_tools/report.py {folder}'
    )


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
