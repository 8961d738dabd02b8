"""Render README.md and its figures from the rows of the study.

The page is README.md.j2; each figure in its prose and each table is computed
from rows.jsonl, over the seeds.

Example::

    python projects/study/render.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from plan import BUDGET, FROZEN, SETTINGS, STUDY, SWEEP
from points import FINE, PLAN, POINTS, best, duels, load
from rows import ROWS, Rows

from mmdge.utils import UserError, launch
from mmdge.utils.plots import Plot, draw

NAMES = {
    'static': 'static checkpoint',
    'dense': 'dense twin',
    'error': '**error** (ours)',
    'scratch error': '**error** (ours), untrained',
    'error-many': '**error**, for many budgets',
    'oracle': 'oracle (true errors)',
    'shuffled': 'error, shuffled in the image',
    'variance': 'variance, fixed shares',
    # Until it is trained it has no thresholds for all.
    'untrained variance': 'variance, fixed shares of each image',
    'learned': "the paper's",
    'learned 0': "the paper's, at no price",
    'uniform': 'uniform',
    'random': 'random',
    'uniform-mid': 'uniform, no 4 x 4',
    'random-mid': 'random, no 4 x 4',
    'smaller': 'smaller static model',
}
# What the arms of a phase are compared with.
DENSE = dict(untrained='static', finetuned='dense', scratch='dense')
GFLOPS, RATIO = 'backbone/GFLOPs', 'backbone/FLOPs_ratio'
# Arms below are a phase, a name, and the ratios asked and trained for, if
# these aren't a half.
CHECKPOINTS = {
    'untrained': 'untrained error {}',
    'trained at .5': 'finetuned error {}',
    'trained at .35, .5, .7': 'finetuned error-many {}',
    'trained at .35': 'finetuned error {} 0.35',
    'trained at .7': 'finetuned error {} 0.7',
    'uniform, no 4 x 4': 'finetuned uniform-mid {} {}',
}
# The first is held against the best of the others.
CONTROLS = ('random', 'uniform', 'random-mid', 'uniform-mid')
QUESTIONS = {
    'error, untrained - static': ['untrained error', 'untrained static'],
    'error, fine-tuned - dense twin': ['finetuned error', 'finetuned dense'],
    'error - best control, untrained': [
        f'untrained {arm}' for arm in ('error', *CONTROLS)
    ],
    'error - best control, fine-tuned': [
        f'finetuned {arm}' for arm in ('error', *CONTROLS)
    ],
    'error - variance, untrained': ['untrained error', 'untrained variance'],
    'error - variance, fine-tuned': ['finetuned error', 'finetuned variance'],
    "error - the paper's, fine-tuned": [
        'finetuned error',
        'finetuned learned',
    ],
    "error - the paper's at no price, fine-tuned": [
        'finetuned error',
        'finetuned learned 0',
    ],
    'for many budgets - for .35, at .35': [
        'finetuned error-many 0.35',
        'finetuned error 0.35 0.35',
    ],
    'for many budgets - for .7, at .7': [
        'finetuned error-many 0.7',
        'finetuned error 0.7 0.7',
    ],
}
# A line of a plot, or a dot.
DRAWN = {
    'error: without training': 'untrained error {}',
    'error: fine-tuned at .5': 'finetuned error {}',
    'error: fine-tuned for many budgets': 'finetuned error-many {}',
    'dense twin': 'finetuned dense',
    'variance, fixed shares': 'finetuned variance',
    "the paper's": 'finetuned learned',
    'error, shuffled in the image': 'finetuned shuffled',
    'uniform, no 4 x 4': 'finetuned uniform-mid',
    'random, no 4 x 4': 'finetuned random-mid',
    'smaller static model, from scratch': 'scratch smaller',
}
TIMED = {
    'error, fine-tuned': 'finetuned error {}',
    'dense twin': 'finetuned dense',
    'dense, from scratch': 'scratch dense',
    'smaller static model, from scratch': 'scratch smaller',
}
KINDS = ('objects', 'area', 'edges', 'classes')


class Study:
    """The rows of the study, by what they are about, and its tables.

    Args:
        rows (Iterable): As :class:`rows.Rows` has them.
    """

    def __init__(self, rows: Iterable[Mapping]) -> None:
        table = pd.json_normalize(list(rows)).set_index('seed').sort_index()
        table.columns = table.columns.str.removeprefix('metrics.')
        for key in (f'content/{kind}_corr' for kind in KINDS):
            table[key] = table.get(key)
        # AP and mIoU alike, in points.
        in_points = table.metric.isin(['mIoU', 'ms'])
        table['accuracy'] = table.value.where(in_points, 100 * table.value)
        table = table.fillna({'budget': 0, 'asked': 0})
        keys = ['setting', 'phase', 'arm', 'budget', 'asked']
        self._empty, self._of = table.iloc[:0], dict(list(table.groupby(keys)))

    def rows(self, setting: str, which: str) -> pd.DataFrame:
        """The rows of one figure, by seed; ``accuracy`` is in points.

        Args:
            setting (str): Of the plan.
            which (str): Phase, arm, and the ratios that it was asked and
                trained for; by default a half if the arm has any, 0 is none.
        """
        phase, arm, *ratios = which.split()
        static = arm in ('static', 'dense')
        default = [0 if static or arm == 'smaller' else BUDGET]
        default += [0 if static else BUDGET]
        asked, budget = [*map(float, ratios), *default[len(ratios) :]]
        return self._of.get((setting, phase, arm, budget, asked), self._empty)

    def at(self, setting: str, which: str, key: str = 'accuracy') -> pd.Series:
        """One quantity of them."""
        return self.rows(setting, which)[key]

    def gain(self, setting: str, which: str) -> pd.Series:
        """Points above the dense model, of the seeds that both have."""
        phase = which.split()[0]
        dense = self.at(setting, f'{phase} {DENSE[phase]}')
        return (self.at(setting, which) - dense).dropna()

    def compare(self, phase: str, arms: str) -> str:
        """Arms of every setting, each against the dense model."""
        return markdown(
            {
                'setting': setting,
                'routing': name,
                'accuracy': spread(found.accuracy),
                'difference': spread(self.gain(setting, which), '+'),
                'GFLOPs': shown(found[GFLOPS], 3),
                'p95': shown(found[f'{GFLOPS}_p95'], 3),
                # A smaller model is its own dense twin.
                'ratio': '-' if small else shown(found[RATIO], 3),
                'std': '-' if small else shown(found[f'{RATIO}_std'], 3),
                'seeds': len(found),
            }
            for setting, which, name, found in self._there(phase, arms)
            for small in [which.endswith('smaller')]
        )

    def content(self, phase: str, arms: str) -> str:
        """Does the ratio follow what is in the image?"""
        return markdown(
            {
                'setting': setting,
                'routing': name,
                'ratio': shown(found[RATIO], 3),
                'std': shown(found[f'{RATIO}_std'], 3),
                **{
                    kind: shown(values, 2) if values.notna().all() else ''
                    for kind in KINDS
                    for values in [found[f'content/{kind}_corr']]
                },
                'seeds': len(found),
            }
            for setting, _, name, found in self._there(phase, arms)
        )

    def _there(self, phase: str, arms: str) -> Iterator[tuple]:
        """What has rows: setting, arm, its name, and they."""
        for setting, arm in product(SETTINGS, arms.split(', ')):
            which = f'{phase} {arm}'
            names = [NAMES.get(key) for key in (which, arm, arm.split()[0])]
            if len(found := self.rows(setting, which)):
                yield setting, which, next(filter(None, names)), found

    def verdicts(self) -> str:
        """The questions of the study, and the answer of each setting."""
        body = []
        for question, (own, *others) in QUESTIONS.items():
            body.append({'difference in points': question})
            for setting in SETTINGS:
                gaps = [
                    self.at(setting, own) - self.at(setting, o) for o in others
                ]
                # Seed by seed, the best of them leaves the least.
                least = pd.concat(gaps, axis=1).min(axis=1).dropna()
                seeds = f', n={len(least)}' * bool(len(least))
                body[-1][setting] = spread(least, '+') + seeds
        return markdown(body)

    def budgets(self) -> str:
        """One checkpoint at other budgets, and those trained for them."""
        body = []
        for setting, (name, arm) in product(SETTINGS, CHECKPOINTS.items()):
            found = [self.at(setting, arm.format(r, r)) for r in SWEEP]
            if seeds := [len(values) for values in found if len(values)]:
                cells = zip(
                    map('{:g}'.format, SWEEP), map(spread, found), strict=True
                )
                head = {'setting': setting, 'checkpoint': name}
                body.append(head | dict(cells) | {'seeds': min(seeds)})
        return markdown(body)

    def calibration(self) -> str:
        """What was asked for and what the validation set took."""
        body = []
        for setting in SETTINGS:
            found = {
                r: self.at(setting, f'finetuned error {r}', RATIO)
                for r in SWEEP
            }
            if seeds := min(map(len, found.values())):
                furthest = max(abs(v - r).max() for r, v in found.items())
                cells = {f'{r:g}': shown(v, 3) for r, v in found.items()}
                last = {'furthest': shown(furthest, 3), 'seeds': seeds}
                body.append({'setting': setting} | cells | last)
        return markdown(body)

    def seconds(self) -> str:
        """What the FLOPs are in time and memory."""
        arms = 'dense', *(f'error {ratio}' for ratio in SWEEP), 'smaller'
        return markdown(
            {
                'setting': setting,
                'routing': name,
                'ratio': shown(row[GFLOPS] / dense[GFLOPS], 3),
                'ms': shown(row.value),
                'quartiles': shown(row.lower) + '-' + shown(row.upper),
                'of dense': shown(row.value / dense.value, 3),
                'ms in a batch': shown(row.ms_in_batch),
                'of dense in a batch': shown(
                    row.ms_in_batch / dense.ms_in_batch, 3
                ),
                'MB': shown(row.MB),
            }
            for setting, _, name, found in self._there('time', ', '.join(arms))
            for seed, row in found.iterrows()
            for dense in [self.rows(setting, 'time dense').loc[seed]]
        )

    def gains(self) -> list[Plot]:
        """Points above the dense model against GFLOPs, for each setting."""
        labels = 'GFLOPs of the backbone', 'points above the dense model'
        plots = [Plot(*labels, setting, {}) for setting in SETTINGS]
        for plot, (name, arm) in product(plots, DRAWN.items()):
            for which in dict.fromkeys(arm.format(r) for r in SWEEP):
                gain = self.gain(plot.title, which)
                x = [self.at(plot.title, which, GFLOPS).mean()] * 3
                y = gain.min(), gain.mean(), gain.max()
                if len(gain):
                    plot.series.setdefault(name, []).append(np.array([x, y]))
        return plots

    def times(self) -> list[Plot]:
        """Accuracy against time, for the seed that was timed."""
        labels = 'ms of the backbone', 'AP or mIoU, points'
        plots = [Plot(*labels, setting, {}) for setting in SETTINGS]
        for plot, (name, arm) in product(plots, TIMED.items()):
            for which in dict.fromkeys(arm.format(r) for r in SWEEP):
                timed = self.rows(plot.title, f'time {which.split(" ", 1)[1]}')
                found = timed.join(
                    self.at(plot.title, which).rename('y'), how='inner'
                )
                for _, row in found.iterrows():
                    for label, x in (
                        (name, [row.lower, row.value, row.upper]),
                        (
                            f'{name}, per image of a batch',
                            [row.ms_in_batch] * 3,
                        ),
                    ):
                        point = np.array([x, [row.y] * 3])
                        plot.series.setdefault(label, []).append(point)
        return plots

    def settings(self) -> list[str]:
        """Of the second part, those that have points."""
        return [n for n in PLAN if (POINTS / f'{n}.json').exists()]

    def in_short(self) -> str:
        """The best dynamic point against the smaller input."""
        body = []
        for name in self.settings():
            titles = dict(value=f'`{load(name).attrs["metric"]}`')
            for metric in duels(name).metric.unique():
                row = best(name, metric)
                body.append(
                    {
                        'setting': name,
                        'metric': titles.get(metric, metric),
                        'method': row.method,
                        'it loses': shown(row.lost, 2),
                        'smaller input, equal FLOPs': lost(row.GFLOPs),
                        'smaller input, equal ms': lost(row.ms),
                    }
                )
        return markdown(body)

    def together(self) -> str:
        """Routing at a smaller input, against the smaller input alone."""
        body = []
        for name in self.settings():
            table, found = load(name), duels(name)
            full = table[(table.method == 'dense') & (table.scale == 1)]
            for _, row in found[found.scale < 1].iterrows():
                own = table[
                    (table.scale == row.scale)
                    & (table.method == row.method)
                    & (table.asked == row.asked)
                ]
                part = own.GFLOPs.item() / full.GFLOPs.item()
                title = table.attrs['metric']
                body.append(
                    {
                        'setting': name,
                        'scale and ratio': f'{row.scale:g}, {row.asked:g}',
                        'of the FLOPs': shown(part, 2),
                        'metric': f'`{title}`'
                        if row.metric == 'value'
                        else row.metric,
                        'it loses': shown(row.lost, 2),
                        'smaller input, equal FLOPs': lost(row.GFLOPs),
                        'smaller input, equal ms': lost(row.ms),
                    }
                )
        return markdown(body)

    def about(self, name: str) -> str:
        """What is run, and where it was timed."""
        table = load(name)
        config = (SETTINGS | FROZEN)[name].config
        said = f'[`{config}`](./configs/{config}.py), seed 0.'
        if table.ms.notna().any():
            rounds, images, batch, *_ = table.attrs['timed']
            said += (
                f' Timed on {table.attrs["device"]}: {rounds} rounds in '
                f'turns, {images} images, batches of {batch}.'
            )
        return said

    def points(self, name: str) -> str:
        """All points of a setting."""
        table = load(name).sort_values('GFLOPs', ascending=False)
        fine = [title for title in FINE.values() if title in table]
        return markdown(
            {
                'method': row.method + ' (control)' * row.control,
                'scale': f'{row.scale:g}',
                'ratio': shown(row.ratio, 3),
                table.attrs['metric']: shown(row.value, 2),
                **{title: shown(row[title], 2) for title in fine},
                'GFLOPs': shown(row.GFLOPs, 3),
                'of the backbone (p5-p95)': f'{shown(row.backbone, 3)} '
                f'({shown(row.p5, 3)}-{shown(row.p95, 3)})',
                'ms (quartiles)': f'{row.ms:.1f} '
                f'({row.lower:.1f}-{row.upper:.1f})',
                'ms in a batch': f'{row.batch:.1f}',
            }
            for _, row in table.iterrows()
        )

    def fill(self, template: str) -> str:
        """The page, or a part of it; see :func:`fill`."""
        return fill(template, self)


def fill(template: str, source: object) -> str:
    """A page, or a part of it, with the figures and tables of its source.

    Raises:
        UserError: If there is no row for one of its figures.
    """
    env = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda v: v if isinstance(v, str) else shown(v),
    )
    env.filters['shown'] = shown
    names = [n for n in dir(source) if not n.startswith('_')]
    return env.from_string(template).render(
        {name: getattr(source, name) for name in names}
    )


def shown(value: float | pd.Series, digits: int = 1, sign: str = '') -> str:
    """A figure, or the mean of several, rounded alike wherever it is."""
    value = float(np.mean(value))
    if np.isnan(value):
        raise UserError('a figure of the page has no row')
    # What a sum of decimals leaves is cut off, or 1.55 may be 1.5; and 0 has
    # no sign.
    return f'{round(round(value, 6), digits) + 0.0:{sign}.{digits}f}'


def lost(points: float) -> str:
    """Points, where they are known."""
    return '-' if np.isnan(points) else shown(points, 2)


def spread(values: pd.Series, sign: str = '') -> str:
    """Mean, and the range over the seeds; with a sign, of differences."""
    if values.empty:
        return '-' * bool(sign)
    low, high = (shown(end, 1, sign) for end in (values.min(), values.max()))
    ends = f' ({low}{" to " if sign else "-"}{high})' * (len(values) > 1)
    return shown(values, 1, sign) + ends


def markdown(rows: Iterable[Mapping[str, object]]) -> str:
    """A table; numbers to the right."""
    table = pd.DataFrame(rows).astype(str)
    words = 'setting', 'routing', 'checkpoint', 'difference in points'
    words += 'method', 'metric'
    align = ['---' if name in words else '---:' for name in table]
    lines = [table.columns, align, *table.to_numpy()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def save(plots: list[Plot], path: Path) -> None:
    """Draw the panels into a file, with one legend."""
    figure, known = draw(plots, 3.4, 4.4), {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        known.update(zip(labels, handles, strict=True))
    figure.legend(known.values(), known, loc='outside lower center', ncols=4)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--rows', type=Path, default=ROWS)
    add('--out', type=Path, default=STUDY, help='folder for what is written')
    args = parser.parse_args()
    study = Study(Rows(args.rows))
    for name in ('README.md', 'operating_points.md'):
        page = study.fill((STUDY / f'{name}.j2').read_text())
        (args.out / name).write_text(page)
    save(study.gains(), args.out / 'flops.png')
    save(study.times(), args.out / 'time.png')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
