"""Render README.md and its figures from the rows of the study.

The page is README.md.j2; each figure in its prose and each table is computed
from rows.jsonl, over the seeds.

Example::

    python projects/study/render.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from plan import BUDGET, SETTINGS, STUDY, SWEEP
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
CHECKPOINTS = {
    'untrained': ('untrained', 'error', BUDGET),
    'trained at .5': ('finetuned', 'error', BUDGET),
    'trained at .35, .5, .7': ('finetuned', 'error-many', BUDGET),
    'trained at .35': ('finetuned', 'error', 0.35),
    'trained at .7': ('finetuned', 'error', 0.7),
    'uniform, no 4 x 4': ('finetuned', 'uniform-mid', None),
}
BEFORE, AFTER = ('untrained', 'error'), ('finetuned', 'error')
# Of the same FLOPs, which know nothing of what is where.
CONTROLS = ('random', 'uniform', 'random-mid', 'uniform-mid')
# The first is held against each of the others.
QUESTIONS = {
    'error, untrained - static': (BEFORE, ('untrained', 'static')),
    'error, fine-tuned - dense twin': (AFTER, ('finetuned', 'dense')),
    'error - best control, untrained': (
        BEFORE,
        *(('untrained', arm) for arm in CONTROLS),
    ),
    'error - best control, fine-tuned': (
        AFTER,
        *(('finetuned', arm) for arm in CONTROLS),
    ),
    'error - variance, untrained': (BEFORE, ('untrained', 'variance')),
    'error - variance, fine-tuned': (AFTER, ('finetuned', 'variance')),
    "error - the paper's, fine-tuned": (AFTER, ('finetuned', 'learned')),
    "error - the paper's at no price, fine-tuned": (
        AFTER,
        ('finetuned', 'learned', 0),
    ),
    'for many budgets - for .35, at .35': (
        ('finetuned', 'error-many', 0.35),
        (*AFTER, 0.35, 0.35),
    ),
    'for many budgets - for .7, at .7': (
        ('finetuned', 'error-many', 0.7),
        (*AFTER, 0.7, 0.7),
    ),
}
# Lines of the plots, and dots.
DRAWN = {
    'error: without training': BEFORE,
    'error: fine-tuned at .5': AFTER,
    'error: fine-tuned for many budgets': ('finetuned', 'error-many'),
    **{
        NAMES[arm]: ('finetuned', arm)
        for arm in ('dense', 'variance', 'learned', 'shuffled')
    },
    'uniform, no 4 x 4': ('finetuned', 'uniform-mid'),
    'random, no 4 x 4': ('finetuned', 'random-mid'),
    'smaller static model, from scratch': ('scratch', 'smaller'),
}
TIMED = {
    'error, fine-tuned': AFTER,
    'dense twin': ('finetuned', 'dense'),
    'dense, from scratch': ('scratch', 'dense'),
    'smaller static model, from scratch': ('scratch', 'smaller'),
}


class Study:
    """The rows of the study, by what they are about, and its tables.

    Args:
        rows (Iterable): As :class:`rows.Rows` has them.
    """

    def __init__(self, rows: Iterable[Mapping]) -> None:
        table = pd.json_normalize(list(rows)).set_index('seed').sort_index()
        table.columns = table.columns.str.removeprefix('metrics.')
        # AP and mIoU alike, in points.
        in_points = table.metric.isin(['mIoU', 'ms'])
        table['accuracy'] = table.value.where(in_points, 100 * table.value)
        table = table.fillna({'budget': 0, 'asked': 0})
        keys = ['setting', 'phase', 'arm', 'budget', 'asked']
        self._empty, self._of = table.iloc[:0], dict(list(table.groupby(keys)))

    def rows(
        self,
        setting: str,
        phase: str,
        arm: str,
        asked: float | None = None,
        budget: float | None = None,
    ) -> pd.DataFrame:
        """The rows of one figure, by seed; ``accuracy`` is in points.

        Where ``asked`` and ``budget`` aren't told, they are a half if the arm
        has any; 0 is none.
        """
        half = 0 if arm in ('static', 'dense') else BUDGET
        if asked is None:
            asked = 0 if arm == 'smaller' else half
        key = setting, phase, arm, half if budget is None else budget, asked
        return self._of.get(key, self._empty)

    def at(
        self, *where: str, key: str = 'accuracy', **which: float
    ) -> pd.Series:
        """One quantity of them."""
        return self.rows(*where, **which).get(key, pd.Series(dtype=float))

    def gain(self, setting: str, phase: str, *arm: str, **which: float):
        """Points above the dense model, of the seeds that both have."""
        dense = self.at(setting, phase, DENSE[phase])
        return (self.at(setting, phase, *arm, **which) - dense).dropna()

    def compare(self, phase: str, arms: str) -> str:
        """Arms of every setting, each against the dense model."""

        def columns(found: pd.DataFrame, *arm: str) -> dict[str, str]:
            return {
                'accuracy': spread(found.accuracy),
                'difference': spread(self.gain(*arm), '+'),
                'GFLOPs': shown(found[GFLOPS], 3),
                'p95': shown(found[f'{GFLOPS}_p95'], 3),
                # A smaller model is its own dense twin.
                **{
                    name: '-' if 'smaller' in arm else shown(found[key], 3)
                    for name, key in dict(
                        ratio=RATIO, std=f'{RATIO}_std'
                    ).items()
                },
            }

        return self._side_by_side(phase, arms, columns)

    def content(self, phase: str, arms: str) -> str:
        """Does the ratio follow what is in the image?"""

        def columns(found: pd.DataFrame, *_: str) -> dict[str, str]:
            known = {
                kind: found.get(f'content/{kind}_corr', pd.Series())
                for kind in ('objects', 'area', 'edges', 'classes')
            }
            return {
                'ratio': shown(found[RATIO], 3),
                'std': shown(found[f'{RATIO}_std'], 3),
                **{
                    kind: shown(v, 2) if v.notna().any() else ''
                    for kind, v in known.items()
                },
            }

        return self._side_by_side(phase, arms, columns)

    def _side_by_side(self, phase: str, arms: str, columns) -> str:
        body = []
        for setting in SETTINGS:
            for arm in arms.split(', '):
                name, *asked = arm.split()
                which = setting, phase, name, *map(float, asked)
                if len(found := self.rows(*which)):
                    about = NAMES.get(f'{phase} {arm}') or NAMES[arm]
                    body.append(
                        {
                            'setting': setting,
                            'routing': about,
                            **columns(found, *which),
                            'seeds': len(found),
                        }
                    )
        return markdown(body)

    def verdicts(self) -> str:
        """The questions of the study, and the answer of each setting."""
        body = []
        for question, (own, *others) in QUESTIONS.items():
            cells = {'difference in points': question}
            for setting in SETTINGS:
                found = self.rows(setting, *own).accuracy
                gaps = [
                    found - self.rows(setting, *o).accuracy for o in others
                ]
                # Seed by seed, the best of them leaves the least.
                least = pd.concat(gaps, axis=1).min(axis=1).dropna()
                seeds = f', n={len(least)}' * bool(len(least))
                cells[setting] = spread(least, '+') + seeds
            body.append(cells)
        return markdown(body)

    def budgets(self) -> str:
        """One checkpoint at other budgets, and those trained for them."""
        body = []
        for setting in SETTINGS:
            for name, (*arm, budget) in CHECKPOINTS.items():
                found = {
                    f'{r:g}': self.at(
                        setting, *arm, asked=r, budget=budget or r
                    )
                    for r in SWEEP
                }
                if seeds := [len(v) for v in found.values() if len(v)]:
                    cells = {ratio: spread(v) for ratio, v in found.items()}
                    body.append(
                        {
                            'setting': setting,
                            'checkpoint': name,
                            **cells,
                            'seeds': min(seeds),
                        }
                    )
        return markdown(body)

    def calibration(self) -> str:
        """What was asked for and what the validation set took."""
        body = []
        for setting in SETTINGS:
            found = {
                r: self.at(setting, *AFTER, asked=r, key=RATIO) for r in SWEEP
            }
            if all(map(len, found.values())):
                furthest = max(abs(v - r).max() for r, v in found.items())
                body.append(
                    {
                        'setting': setting,
                        **{f'{r:g}': shown(v, 3) for r, v in found.items()},
                        'furthest': shown(furthest, 3),
                        'seeds': min(map(len, found.values())),
                    }
                )
        return markdown(body)

    def seconds(self) -> str:
        """What the FLOPs are in time and memory."""
        body = []
        for setting in SETTINGS:
            for arm in [
                ('dense',),
                *(('error', r) for r in SWEEP),
                ('smaller',),
            ]:
                for seed, row in self.rows(setting, 'time', *arm).iterrows():
                    dense = self.rows(setting, 'time', 'dense').loc[seed]
                    body.append(
                        {
                            'setting': setting,
                            'routing': NAMES[arm[0]],
                            'ratio': shown(row[GFLOPS] / dense[GFLOPS], 3),
                            'ms': shown(row.value),
                            'quartiles': shown(row.lower)
                            + '-'
                            + shown(row.upper),
                            'of dense': shown(row.value / dense.value, 3),
                            'ms in a batch': shown(row.ms_in_batch),
                            'of dense in a batch': shown(
                                row.ms_in_batch / dense.ms_in_batch, 3
                            ),
                            'MB': shown(row.MB),
                        }
                    )
        return markdown(body)

    def gains(self) -> list[Plot]:
        """Points above the dense model against GFLOPs, for each setting."""
        plots = []
        for setting in SETTINGS:
            series = {}
            for name, arm in DRAWN.items():
                for asked in SWEEP if 'error' in name else [None]:
                    gain = self.gain(setting, *arm, asked=asked)
                    flops = self.at(setting, *arm, asked=asked, key=GFLOPS)
                    if len(gain):
                        y = gain.min(), gain.mean(), gain.max()
                        point = np.array([[flops.mean()] * 3, y])
                        series.setdefault(name, []).append(point)
            plots.append(
                Plot(
                    'GFLOPs of the backbone',
                    'points above the dense model',
                    setting,
                    series,
                )
            )
        return plots

    def times(self) -> list[Plot]:
        """Accuracy against time, for the seed that was timed."""
        plots = []
        for setting in SETTINGS:
            series = {}
            for name, (phase, arm) in TIMED.items():
                for asked in SWEEP if arm == 'error' else [None]:
                    points = self.at(setting, phase, arm, asked=asked)
                    timed = self.rows(setting, 'time', arm, asked)
                    for seed, row in timed[
                        timed.index.isin(points.index)
                    ].iterrows():
                        single = row.lower, row.value, row.upper
                        for label, x in (
                            (name, single),
                            (
                                f'{name}, per image of a batch',
                                [row.ms_in_batch] * 3,
                            ),
                        ):
                            point = np.array([x, [points[seed]] * 3])
                            series.setdefault(label, []).append(point)
            plots.append(
                Plot(
                    'ms of the backbone', 'AP or mIoU, points', setting, series
                )
            )
        return plots

    def fill(self, template: str) -> str:
        """The page, or a part of it.

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
        names = (n for n in dir(self) if not n.startswith('_'))
        return env.from_string(template).render(
            {name: getattr(self, name) for name in names}
        )


def shown(value: float | pd.Series, digits: int = 1, sign: str = '') -> str:
    """A figure, or the mean of several, rounded alike wherever it is."""
    value = float(np.mean(value))
    if np.isnan(value):
        raise UserError('a figure of the page has no row')
    # What a sum of decimals leaves is cut off, or 1.55 may be 1.5; and 0 has
    # no sign.
    return f'{round(round(value, 6), digits) + 0.0:{sign}.{digits}f}'


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
    words = ('setting', 'routing', 'checkpoint', 'difference in points')
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
    page = study.fill((STUDY / 'README.md.j2').read_text())
    (args.out / 'README.md').write_text(page)
    save(study.gains(), args.out / 'flops.png')
    save(study.times(), args.out / 'time.png')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
