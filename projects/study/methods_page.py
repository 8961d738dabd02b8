"""Render methods.md and its pictures from the rows of methods.py.

Where the maps of the models are, in the folder that methods.py wrote to, the
picture of them is drawn, too::

    python projects/study/methods_page.py
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from methods import ERROR, FAMILIES, RATIO, ROWS, STATIC, Arm, Bench, arms_of
from mmengine.registry import init_default_scope
from plan import STUDY
from render import fill, markdown, save, shown
from rows import Row, Rows

from mmdge.datasets import image_loader
from mmdge.engine.hooks.granularity_vis_hook import to_picture
from mmdge.utils import launch
from mmdge.utils.plots import Plot

COSTS = {
    'flops': 'GFLOPs of the whole model',
    'ms': 'ms of the whole model, batch 1',
}
HOW = dict(static='-', longer='further', own='further')  # a model's weights
SHOWN = 4  # images
COLUMNS = 11  # of maps, side by side


class Methods:
    """The rows of all methods, and their tables.

    Args:
        rows (Iterable): As :class:`rows.Rows` has them.
    """

    def __init__(self, rows: Iterable[Mapping]) -> None:
        self._rows = {(r['setting'], r['phase'], r['arm']): r for r in rows}

    def families(self) -> list[str]:
        """Those that have rows."""
        return [name for name in FAMILIES if any(self._of(name))]

    def _of(self, family: str) -> Iterator[tuple[Arm, Row]]:
        """Its arms that were measured."""
        for arm in arms_of(family):
            if row := self._rows.get((family, 'methods', arm.name)):
                yield arm, row

    def _ms(self, arm: Arm) -> dict[str, float]:
        """Quartiles, and the part of the static model's; nothing untimed."""
        row = self._rows.get((arm.family, 'time', arm.name))
        return row and row['metrics'] | dict(median=row['value'])

    def accuracy(self, family: str) -> str:
        """Accuracy, FLOPs and time of a family's arms."""
        body, first = [], None
        for arm, row in self._of(family):
            spent, ms = row['metrics'], self._ms(arm) or {}
            if arm.name == STATIC:
                first = spent['GFLOPs']
            deviation = figure(spent['backbone/GFLOPs_std'], 4)
            quartiles = ' ({lower:.2f}-{upper:.2f})'.format(**ms) if ms else ''
            entry = {
                'method': arm.name,
                'trained': 'from scratch' if arm.afresh else HOW[arm.weights],
                row['metric']: figure(points(row), 1),
                'AP_S': figure(100 * spent.get('coco/bbox_mAP_s', 0.0), 1),
                'GFLOPs of the backbone (std)': figure(
                    spent['backbone/GFLOPs'], 4
                )
                + f' ({deviation})',
                'of the whole model': figure(spent['GFLOPs'], 4),
                "of static's GFLOPs": figure(
                    first and spent['GFLOPs'] / first
                ),
                'ms (quartiles)': figure(ms.get('median')) + quartiles,
                "of static's ms": figure(ms.get('whole_of_static')),
                'ms of the backbone': figure(ms.get('backbone')),
                "of its static's": figure(ms.get('backbone_of_static')),
            }
            if 'mAP' not in row['metric']:
                del entry['AP_S']
            body.append(entry)
        return markdown(body)

    def at(self, key: str, arms: str, *of: str, digits: int = 2) -> str:
        """A figure for the text; of several arms the least and the largest.

        Args:
            key (str): Of a row's metrics; or ``'points'``, ``'lost'`` (to
                the static model), ``'flops'`` or ``'ms'`` (of the static
                model's, of the whole).
            arms (str): Pattern of their names.
            *of (str): Families. Defaults to all detectors.
            digits (int): Defaults to 2.
        """
        found = []
        for family in of or [name for name in FAMILIES if ' ' not in name]:
            rows = {arm.name: row for arm, row in self._of(family)}
            for name, row in rows.items():
                if not re.fullmatch(arms, name):
                    continue
                time = self._rows.get((family, 'time', name))
                static, spent = rows[STATIC], dict(row['metrics'])
                spent['points'] = points(row)
                spent['lost'] = points(static) - points(row)
                spent['flops'] = spent['GFLOPs'] / static['metrics']['GFLOPs']
                if time:
                    spent['ms'] = time['metrics']['whole_of_static']
                found += [spent[key]] if key in spent else []
        ends = {figure(end(found, default=None), digits) for end in (min, max)}
        return ' to '.join(sorted(ends, key=float) if found else ends)

    def where(self) -> str:
        """Agreement with the oracle, and with the objects."""
        return markdown(
            {
                'setting': family,
                'method': arm.name,
                'ratio': figure(spent['backbone/FLOPs_ratio']),
                'correlation with the oracle': figure(spent.get('agreement')),
                'its std': figure(spent.get('agreement_std')),
                'inside boxes, of outside': figure(spent.get('on_objects')),
            }
            for family in self.families()
            for arm, row in self._of(family)
            for spent in [row['metrics']]
            if not arm.static
        )

    def training(self) -> str:
        """What the trainings took."""
        body = []
        for family, of in FAMILIES.items():
            static = self._rows.get((family, 'training', of.static.name))
            trainings = {}
            for arm in arms_of(family):
                trainings.setdefault(arm.trained.name, arm)
            for name, arm in trainings.items():
                row = self._rows.get((family, 'training', name))
                if row is None:
                    continue
                part = static and row['value'] / static['value']
                body.append(
                    {
                        'setting': family,
                        'method': kind_of(arm),
                        's per iteration': figure(row['value'], 3),
                        'of the static': figure(part),
                        'minutes': figure(row['minutes'], 1),
                    }
                )
        return markdown(body)

    def went_on(self) -> str:
        """Time per iteration of the static models, trained longer, of before.

        The same training on the same data: what another load makes of it.
        """
        parts = []
        for family, of in FAMILIES.items():
            first, on = (
                self._rows.get((family, 'training', training.name))
                for training in (of.static, of.longer)
            )
            if first and on:
                parts.append(on['value'] / first['value'])
        ends = (end(parts, default=None) for end in (min, max))
        return ' to '.join(map(figure, ends))

    def timed(self) -> str:
        """Where and how it was timed."""
        found = {
            f'{row["device"]}, {row["timed"][2]} threads; {row["timed"][0]} '
            f'rounds in turns, {row["timed"][1]} images'
            for row in self._rows.values()
            if row['phase'] == 'time'
        }
        return '; '.join(sorted(found)) or 'not timed yet'

    def ratio(self) -> str:
        """Of FLOPs, for which methods are calibrated."""
        return f'{RATIO:g}'

    def images(self) -> str:
        """How many have maps."""
        rows = self._rows.values()
        return str(max((r.get('images', 0) for r in rows), default=0))

    def plots(self, cost: str) -> list[Plot]:
        """Accuracy over a cost of ``COSTS``, a panel for each family."""
        panels = []
        for family in self.families():
            series, metric = {}, ''
            for arm, row in self._of(family):
                metric = row['metric']
                x = [row['metrics']['GFLOPs']] * 3
                if cost == 'ms':
                    ms = self._ms(arm) or {}
                    x = [ms[k] for k in ('lower', 'median', 'upper') if ms]
                name = kind_of(arm)
                if x:
                    place = np.array([x, [points(row)] * 3])
                    series.setdefault(name, []).append(place)
            label = 'AP' if 'mAP' in metric else 'top-1'
            panels.append(Plot(COSTS[cost], label, family, series))
        return panels


def points(row: Row) -> float:
    """Its accuracy, in points of 100."""
    return row['value'] * (100 if 'mAP' in row['metric'] else 1)


def kind_of(arm: Arm) -> str:
    """Its name, without the scale or ratio that it is one of several of."""
    return re.sub(r', input x .*| at [\d.]+$', '', arm.name)


def figure(value: float | None, digits: int = 2) -> str:
    """A figure, or that there is none."""
    return '-' if value is None else shown(value, digits)


def draw_maps(
    images: list[np.ndarray], columns: Mapping[str, np.ndarray]
) -> Figure:
    """Draw where each column computes, a row per image.

    Args:
        images (list[np.ndarray]): RGB, ``(H, W, 3)``, uint8.
        columns (Mapping[str, np.ndarray]): Maps ``(N, h, w)`` of at least as
            many images, by a title of two lines. What shares the first of
            these stays together; blocks of rows are at most so wide.
    """
    blocks = [[]]
    for _, alike in groupby(columns, lambda title: title.split('\n')[0]):
        alike = list(alike)
        if len(blocks[-1]) + len(alike) > COLUMNS:
            blocks.append([])
        blocks[-1] += alike
    wide, norm = max(map(len, blocks)) + 1, Normalize(0, 1)
    figure = Figure(
        (1.3 * wide, len(blocks) * (1.3 * len(images) + 0.4) + 0.6),
        layout='constrained',
    )
    axes = figure.subplots(len(blocks) * len(images), wide, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, block in enumerate(blocks):
        for i, image in enumerate(images):
            line = axes[number * len(images) + i]
            line[0].imshow(image)
            extent = (0, image.shape[1], image.shape[0], 0)
            for axis, title in zip(line[1:], block, strict=False):
                axis.imshow(image.mean(2), 'gray', vmin=-50, vmax=310)
                axis.imshow(
                    *(columns[title][i], 'viridis'),
                    norm=norm,
                    alpha=0.7,
                    extent=extent,
                    interpolation='nearest',
                )
        heads = axes[number * len(images)]
        for axis, title in zip(heads, ['image', *block], strict=False):
            axis.set_title(title, fontsize=8)
    figure.colorbar(
        ScalarMappable(norm, 'viridis'),
        ax=axes,
        location='bottom',
        shrink=0.5,
        aspect=50,
        pad=0.01,
        label='share of the dense compute, mean over the decisions',
    )
    return figure


def maps_in(bench: Bench) -> dict[str, np.ndarray]:
    """The maps of the detectors that there are, by the titles to draw."""
    found = {}
    for family, of in FAMILIES.items():
        if not of.config.startswith('retinanet'):
            continue
        for arm in arms_of(family):
            for name, title in (('maps', arm.name), ('oracle', 'oracle')):
                path = bench.place(arm) / f'{name}.npy'
                if path.exists() and (name == 'maps' or arm.name == ERROR):
                    found[f'{family}\n{title}'] = np.load(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--rows', type=Path, default=ROWS)
    add('--work-dirs', type=Path, default=Path('work_dirs'))
    add('--out', type=Path, default=STUDY, help='folder for what is written')
    args = parser.parse_args()
    rows = Rows(args.rows)
    page = Methods(rows)
    text = fill((STUDY / 'methods.md.j2').read_text(), page)
    (args.out / 'methods.md').write_text(text)
    for cost in COSTS:
        save(page.plots(cost), args.out / f'methods_{cost}.png')
    bench = Bench(args.work_dirs, rows)
    if columns := maps_in(bench):
        number = len(next(iter(columns.values())))
        cfg = bench.load(FAMILIES['PVT'].config, {})
        init_default_scope(launch.scope_of(cfg))
        images = [
            to_picture(data['inputs'][0])
            for _, data in zip(
                range(SHOWN), image_loader(cfg, number=number), strict=False
            )
        ]
        figure = draw_maps(images, columns)
        figure.savefig(args.out / 'methods_maps.jpg', dpi=110)


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
