"""Put runs, operating points and studies on one HTML page.

It shows tables, curves, accuracy against cost, and granularity maps; it needs
no server and no network. Unit: 1 GFLOPs = 1e9 multiply-adds, of convolutions,
linear layers and both attention products.

Example::

    python tools/analysis_tools/report.py work_dirs --out report.html
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from mmdge.utils import UserError, checks, launch, plots

STAMP = re.compile(r'(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)\d\d')
# Of those that a host reports, what one would quote.
HEADLINE = re.compile(r'(^|[/_])(mAP|mIoU|top1)$')
NO_METRIC = re.compile(r'backbone/|content/|(data_time|time|step|epoch|iter)$')
CURVES = dict(loss='loss', flops_ratio='FLOPs ratio', lr='learning rate')
# What a row is of; those of one point differ by their seed alone.
POINT = ('scale', 'method', 'routing', 'price')
POINT += ('ratio_asked', 'ratio_calibrated')
POINT += ('arm', 'phase', 'budget', 'asked')
WORDS = (*POINT, 'seed', 'setting', 'data', 'metric', 'date')
MOST, WIDTH = 48, 800  # pictures of a page, in pixels

# One metric of one evaluation, what it is of, and what else was found.
Row = dict[str, Any]


def numbers(entry: Any) -> dict[str, float]:
    """The entries of a JSON object that are numbers."""
    entry = entry if isinstance(entry, dict) else {}
    return {k: v for k, v in entry.items() if isinstance(v, float)}


def read(path: Path) -> str:
    """All of a file; nothing if it is missing."""
    return path.read_text('utf-8', 'replace') if path.exists() else ''


def read_lines(path: Path, problems: list[str], *keys: str) -> list[Row]:
    """The JSON objects with some keys, of a file that has one per line."""
    rows, broken = [], []
    for number, line in enumerate(read(path).split('\n'), 1):
        try:
            row = json.loads(line, parse_int=float)
            rows.append({key: row[key] for key in (*keys, *row)})
        except (ValueError, TypeError, LookupError, RecursionError):
            broken += [str(number)] * bool(line.strip())
    if broken:
        what = ' with '.join(filter(None, ('JSON object', ', '.join(keys))))
        problems.append(f'{path}: no {what} in line {", ".join(broken)}')
    return rows


def headlines(metrics: Iterable[str]) -> list[str]:
    """Names of the metrics to quote: the task's mAP, mIoU or top-1."""
    task = [name for name in metrics if not NO_METRIC.match(name)]
    return [name for name in task if HEADLINE.search(name)] or task[:1] or ['']


def data_root(config: Path, split: str) -> str:
    """``data_root`` in a config, which is not run."""
    path = rf"^{split}_dataloader = .*?data_root='([^']*?)/*'"
    return ''.join(re.findall(path, read(config), re.DOTALL | re.MULTILINE))


def make_row(kind: str, name: Any, path: Path, entry: Row) -> Row:
    """A row of the report from an entry like that of a study."""

    def word(value: Any) -> str:
        value = value.get('type') if isinstance(value, dict) else value
        return f'{value:.4g}' if isinstance(value, float) else str(value or '')

    row = {key: word(entry.get(key)) for key in WORDS}
    changed = f'{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}'
    times = {k: 1e3 * v for k, v in numbers(entry.get('seconds')).items()}
    figures = numbers(entry.get('metrics'))
    return row | dict(
        kind=kind,
        name=str(name),
        date=row['date'] or changed,
        figures=figures | numbers({row['metric']: entry.get('value')}),
        GFLOPs=[figures.get('backbone/GFLOPs', np.nan)] * 3,
        ms=[times.get(n, np.nan) for n in ('lower', 'median', 'upper')],
        quoted=entry.get('quoted', True),
        training=entry.get('training', []),
        pictures=sorted(entry.get('pictures', [])),
    )


def read_run(folder: Path, problems: list[str]) -> list[Row]:
    """Read ``<work_dir>/<timestamp>``, if a run left it."""
    scalars = folder / 'vis_data/scalars.json'
    if not any(folder.glob('2*.*')) and not scalars.exists():
        return []
    training, evaluations = [], []
    for entry in map(numbers, read_lines(scalars, problems)):
        if 'iter' in entry:
            training.append(entry)
        elif entry:
            step = training[-1]['iter'] if training else np.nan
            evaluations.append(dict(entry, step=step))
    tested = read_lines(folder / f'{folder.name}.json', problems)
    evaluations += filter(None, map(numbers, tested))
    if not training and not evaluations:
        problems.append(f'{folder}: a run without any figure')
        return []
    if not training and (folder.parent / 'points.json').exists():
        return []  # of those points
    evaluations = evaluations or [{}]  # none yet
    kind, split = ('training', 'val') if training else ('test', 'test')
    again = [p for p in folder.parent.iterdir() if STAMP.fullmatch(p.name)][1:]
    about = dict(
        data=data_root(folder / 'vis_data/config.py', split),
        date=STAMP.sub(r'\1-\2-\3 \4:\5', folder.name),
        setting=', '.join(path.stem for path in folder.parent.glob('*.py')),
        training=training,
        pictures=[
            (int((re.findall(r'_(\d{1,12})$', path.stem) or [-1])[0]), path)
            for path in folder.glob('vis_data/*/granularity*.png')
        ],
    )
    return [
        make_row(kind, folder if again else folder.parent, folder, row)
        for found in evaluations
        for name in headlines(found)
        for quoted in [found is evaluations[-1]]
        for row in [about | dict(metrics=found, metric=name, quoted=quoted)]
    ]


def read_points(path: Path, problems: list[str]) -> list[Row]:
    """Read what ``operating_points.py`` left."""
    try:
        found = json.loads(read(path), parse_int=float)
        points = [p for p in found['points'] if numbers(p['metrics'])]
    except (ValueError, TypeError, LookupError, RecursionError):
        points = []
    if not points:
        problems.append(f'{path}: no points that have metrics')
        return []
    dumped = sorted(path.parent.glob('*/vis_data/config.py'))
    about = dict(
        setting=f'{found.get("config")}, {found.get("checkpoint")}',
        data=''.join(data_root(config, 'test') for config in dumped[:1]),
        metric=found.get('metric') or headlines(points[0]['metrics'])[0],
    )
    return [make_row('points', path.parent, path, p | about) for p in points]


def collect(folders: Sequence[str | os.PathLike]) -> tuple[list, list[str]]:
    """Rows of every run, point and study below, and what can't be read."""
    roots = [Path(folder).expanduser().resolve() for folder in folders]
    for folder, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise UserError(f'{folder} is no folder; name work dirs of runs')
    rows, problems = [], []
    # A folder may be given twice, or lie in another.
    for path in sorted({p for r in roots for p in (r, *r.rglob('*'))}):
        try:
            if STAMP.fullmatch(path.name) and path.is_dir():
                rows += read_run(path, problems)
            elif path.name == 'points.json':
                rows += read_points(path, problems)
            elif path.suffix == '.jsonl':
                keys = 'setting', 'arm', 'metric', 'value'
                for entry in read_lines(path, problems, *keys):
                    entry['data'] = name = str(entry['setting'])
                    row = make_row('study', name, path, entry)
                    rows += [row] * (row not in rows)  # a copy is no seed
        except OSError as error:
            problems.append(f'{path}: cannot be read: {error.strerror}')
    if not rows:
        raise UserError(
            f'nothing to report in {", ".join(map(str, folders))}: looked for '
            '<work_dir>/<timestamp>/ with vis_data/scalars.json or '
            '<timestamp>.json, for points.json and for *.jsonl'
            + ''.join(f'; {problem}' for problem in problems)
        )
    # Paths are said from the folder above those given.
    above = [r.parents[bool(STAMP.fullmatch(r.name))] for r in roots]
    start = f'{os.path.commonpath(above)}/'
    for row in rows:
        row['name'] = row['name'].removeprefix(start)
    return rows, [p.removeprefix(start) for p in problems]


def group(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows that have the same under some keys, together."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def series(row: Row) -> str:
    """What a point belongs to; each checkpoint has a line of its own."""
    words = dict.fromkeys((row['arm'], row['phase'], row['budget']))
    if row['kind'] != 'study':
        # One of the scales of the dense model, or of the ratios at a scale.
        scale = f'scale {row["scale"]}' if row['ratio_asked'] else ''
        words = row['name'], row['method'], scale
    return ', '.join(filter(None, words))


def span(rows: Iterable[Row], key: str, form: str, mean: bool = False) -> str:
    """The least and the most of a figure, once if they are the same."""
    values = [r['figures'][key] for r in rows if key in r['figures']]
    values = [sum(values) / len(values)] if mean and values else values
    ends = [format(end(values), form) for end in (min, max) if values]
    return ' – '.join(dict.fromkeys(ends))


def place(x: Sequence[float], y: float) -> list[np.ndarray]:
    """A point of a plot, or none if matplotlib would not bear it."""
    point = np.array([x, [y] * 3])
    return [point] * bool(np.abs(point).max() < 1e100)


def over_cost(rows: Iterable[Row], cost: str) -> list[plots.Plot]:
    """Accuracy against GFLOPs or ms, where there are several points."""
    found = defaultdict(lambda: defaultdict(list))
    for same in group(rows, 'kind', 'name', 'metric', 'data', *POINT).values():
        metric, data = same[0]['metric'], same[0]['data']
        places = [
            point
            for row in same
            if row['quoted'] and metric != 'ms'
            for point in place(row[cost], row['figures'].get(metric, np.nan))
        ]
        if places:
            low, middle, high = np.moveaxis(places, 2, 0)
            point = np.stack([low.min(0), middle.mean(0), high.max(0)], 1)
            found[metric, data][series(same[0])].append(point)
    return [
        plots.Plot(f'{cost}, mean over the images', *title, lines)
        for title, lines in found.items()
        if sum(map(len, lines.values())) > 1
    ]


def over_iterations(rows: list[Row]) -> list[plots.Plot]:
    """Loss, FLOPs ratio, learning rate and metric of a training."""
    metric, training = rows[0]['metric'], rows[0]['training']
    curves = [(title, key, 'iter', training) for key, title in CURVES.items()]
    curves.append((metric, metric, 'step', [row['figures'] for row in rows]))
    drawn = []
    for title, key, x, entries in curves:
        pairs = [(e.get(x, np.nan), e.get(key, np.nan)) for e in entries]
        points = [point for x, y in pairs for point in place([x] * 3, y)]
        if len(points) > 1:
            drawn.append(plots.Plot('iteration', title, '', {'': points}))
    return drawn


def gallery(rows: list[Row], problems: list[str]) -> list[tuple[str, str]]:
    """Captions of the newest pictures, and each small, as JPEG in base64."""
    shown, runs = [], sorted(group(rows, 'date', 'name').items())
    newest = [(run[0], p) for _, run in runs for p in run[0]['pictures'][-8:]]
    for run, (step, path) in newest[-MOST:]:
        try:
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            scale = min(1, WIDTH / pixels.shape[1])
            pixels = cv2.resize(
                pixels, None, None, scale, scale, cv2.INTER_AREA
            )
            jpeg = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, 70])
        except (cv2.error, AttributeError):  # None is what can't be read
            problems.append(f'{run["name"]}, {path.name}: no picture')
            continue
        # A test has no iteration, and MMEngine calls that 0.
        name = f'{run["name"]}, ' + (
            f'iteration {step}' * (step > 0) or 'test'
        )
        shown.append((name, base64.b64encode(jpeg[1]).decode()))
    return shown


def build_page(rows: list[Row], problems: list[str], date: str) -> str:
    """Make the report, an HTML document that needs nothing else."""
    env = jinja2.Environment(autoescape=True, trim_blocks=True)
    template = env.from_string(read(Path(__file__).with_suffix('.html.j2')))
    return template.render(globals() | locals())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR')
    parser.add_argument('--out', default='report.html', help='its name')
    args = parser.parse_args()
    checks.check_output(args.out, '--out')
    rows, problems = collect(args.work_dirs)
    page = build_page(rows, problems, f'{datetime.now():%Y-%m-%d %H:%M}')
    try:
        Path(args.out).write_text(page, encoding='utf-8')
    except OSError as error:
        said = f'--out {args.out} cannot be written: {error.strerror}'
        raise UserError(said) from error
    said = [f'not shown: {problem}' for problem in problems]
    print(*said, f'wrote {args.out}, {len(page) / 1e6:.1f} MB', sep='\n')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
