"""The second part: a smaller input against every method, on one checkpoint.

Each setting's static checkpoint, trained by run.py, is run by
tools/analysis_tools/operating_points.py at input scales, methods and ratios.
What is measured already isn't measured again. The points are kept beside this
file, and render.py makes operating_points.md from them::

    python projects/study/points.py --settings dinov2-linear-camvid
    python projects/study/points.py --time          # with nothing else running
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from plan import FROZEN, SETTINGS, STUDY
from run import Chain

from mmdge.utils import launch

POINTS = STUDY / 'points'
# What is measured of a kind of backbone: arguments of the tool, run by run.
VIT = (
    '--scale 1 .77 .69 .615 .5 --method dense',
    '--scale 1 --method mixed --ratio .35 .5 .7',
    '--scale 1 --ratio .5 --method '
    'mixed-random mixed-uniform merging merging-random error',
    '--scale .77 --method mixed --ratio .5 .7',
)
PVT = (
    '--scale 1 --method error --ratio .35 .5 .7',
    '--scale 1 --method variance random uniform --ratio .5',
)
FINE_STEPS = ('--scale 1 .9 .8 .7 .6 .5 --method dense', *PVT)
# At 192 pixels a step is a sixth.
COARSE_STEPS = ('--scale 1 .84 .67 .5 --method dense', *PVT)
# Every second frame of the video, which differ little.
HALF = f'test_dataloader.dataset.indices={[*range(0, 233, 2)]}'
# How they are timed.
LONG = '--repeats 5 --num-timed 4 --batch-size 4'
SHORT = '--repeats 7'
PLAN = {
    'dinov2-linear-camvid': (VIT, LONG, HALF),
    'dinov2-bccd': (VIT, LONG, None),
    'bccd': (FINE_STEPS, SHORT, None),
    'shapes-box': (COARSE_STEPS, SHORT, None),
}
# Metrics that tell what resolution is for, beside the task's.
FINE = {
    'coco/bbox_mAP_s': 'AP_S',
    'coco/bbox_mAP_m': 'AP_M',
    'coco/bbox_mAP_l': 'AP_L',
    'mIoU_edges': 'mIoU near edges',
    'mIoU_thin': 'mIoU of thin classes',
}
WHOLE = 'GFLOPs', 'ms'  # costs of the whole model


def load(name: str) -> pd.DataFrame:
    """The points of a setting, a row each; metrics in points of 100."""
    record = json.loads((POINTS / f'{name}.json').read_text())
    rows = []
    for point in record['points']:
        metrics = point['metrics']
        own = metrics.get(record['metric'], 0.0)
        factor = point['value'] / own if own else 1.0
        seconds, batch = point.get('seconds'), point.get('seconds_batch')
        rows.append(
            dict(
                scale=point['scale'],
                method=point['method'],
                ratio=metrics['backbone/FLOPs_ratio'],
                asked=point['ratio_asked'],
                control=point['control'],
                value=point['value'],
                **{
                    title: factor * metrics[key]
                    for key, title in FINE.items()
                    # -1: there are no such objects.
                    if metrics.get(key, -1) >= 0
                },
                GFLOPs=point['model_GFLOPs'],
                backbone=metrics['backbone/GFLOPs'],
                p5=metrics['backbone/GFLOPs_p5'],
                p95=metrics['backbone/GFLOPs_p95'],
                ms=1e3 * seconds['median'] if seconds else np.nan,
                lower=1e3 * seconds['lower'] if seconds else np.nan,
                upper=1e3 * seconds['upper'] if seconds else np.nan,
                batch=1e3 * batch['median'] if batch else np.nan,
            )
        )
    table = pd.DataFrame(rows)
    table.attrs.update(metric=record['metric'], device=record.get('device'))
    table.attrs['timed'] = record.get('timed')
    return table


def smaller_input(
    table: pd.DataFrame, metric: str, cost: str, at: float
) -> float:
    """What the dense model has of a metric at a scale that costs so much.

    In a line between the scales that were measured; NaN beyond them.
    """
    dense = table[table.method == 'dense'].sort_values(cost)
    dense = dense.dropna(subset=[cost])
    if dense.empty:
        return np.nan
    return float(np.interp(at, dense[cost], dense[metric], np.nan, np.nan))


def duels(name: str) -> pd.DataFrame:
    """Each dynamic point against the smaller input of equal cost.

    Columns: scale, method, asked, metric; what is lost against the dense
    model at scale 1, and what the smaller input loses at equal GFLOPs and at
    equal milliseconds of the whole model.
    """
    table, rows = load(name), []
    full = table[(table.method == 'dense') & (table.scale == 1)].iloc[0]
    metrics = ['value', *(m for m in FINE.values() if m in table)]
    for _, point in table[table.method != 'dense'].iterrows():
        for metric in metrics:
            lost = {
                cost: full[metric]
                - smaller_input(table, metric, cost, point[cost])
                for cost in WHOLE
            }
            rows.append(
                dict(
                    scale=point.scale,
                    method=point.method,
                    asked=point.asked,
                    control=point.control,
                    metric=metric,
                    lost=full[metric] - point[metric],
                    **lost,
                )
            )
    return pd.DataFrame(rows)


def best(name: str, metric: str, asked: float = 0.5) -> pd.Series:
    """The duel of the dynamic point that loses least, asked for a ratio."""
    found = duels(name)
    found = found[(found.metric == metric) & (found.asked == asked)]
    return (
        found[~found.control & (found.scale == 1)].sort_values('lost').iloc[0]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--settings', nargs='+', choices=PLAN, default=list(PLAN))
    add('--work-dir', type=Path, default=Path('work_dirs/study'))
    add('--threads', type=int, default=2, help='of the CPU (default: 2)')
    add('--time', action='store_true', help='time all points, too')
    args = parser.parse_args()
    for name in args.settings:
        setting = (SETTINGS | FROZEN)[name]
        runs, timed, option = PLAN[name]
        chain = Chain(setting, 0, args.work_dir, args.threads, [])
        config, weights = chain.start('untrained')
        chain.options += [option.replace(' ', '')] if option else []
        folder = chain.folder / 'points'
        for options in runs:
            chain.tool(
                'analysis_tools/operating_points.py',
                *(chain.folder / f'{config}.py', weights, '--out', folder),
                *('--num-images', 64, *options.split()),
                *(timed if args.time else '--repeats 0').split(),
            )
        record = json.loads((folder / 'points.json').read_text())
        for point in record['points']:
            del point['log']
        for key in ('config', 'checkpoint'):  # of this machine
            del record[key]
        POINTS.mkdir(exist_ok=True)
        text = json.dumps(record, indent=1)
        (POINTS / f'{name}.json').write_text(text + '\n')
        shutil.copy(folder / 'points.png', POINTS / f'{name}.png')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
