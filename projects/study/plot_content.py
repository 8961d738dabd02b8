"""Draw each image's ratio of FLOPs over what is in it.

Reads what mmdge.RatioByContent writes to its out_file. A panel for each
quantity has a dot per image and, for each file, Pearson's correlation; the
last panel is the ratio's histogram.

Example::

    python projects/study/plot_content.py FILE.json --out PICTURE.png
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mmdge.evaluation.ratio_by_content import (
    columns,
    correlation,
    quantities,
)
from mmdge.utils import UserError, checks, is_number, launch

LABELS = dict(
    objects='objects',
    area="area of the objects' boxes",
    edges='pixels on an edge between classes',
    classes='classes',
)
SHARES = ('area', 'edges')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'files',
        nargs='+',
        metavar='FILE.json',
        help='out_file of mmdge.RatioByContent, one colour each',
    )
    parser.add_argument(
        '--out',
        required=True,
        metavar='PICTURE.png',
        help='write the picture to this file, in the format of its name',
    )
    return parser.parse_args()


def read(path: str) -> list[dict[str, float]]:
    """Rows of a file, one per image."""
    try:
        rows = json.loads(Path(path).read_text())
    except OSError as err:
        raise UserError(f'cannot read {path}: {err.strerror}') from err
    except ValueError:  # no JSON, or no text
        rows = None
    if not isinstance(rows, list) or not rows or not all(map(is_row, rows)):
        raise UserError(
            f'{path} holds no ratios of images; name a file that '
            "dict(type='mmdge.RatioByContent', out_file=...) wrote"
        )
    return rows


def labels(paths: Sequence[str]) -> list[str]:
    """Short names for files: their own, or from where their paths part."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    root = os.path.commonpath([os.path.abspath(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def is_row(row: object) -> bool:
    """Whether this is what the metric writes for an image."""
    return (
        isinstance(row, dict)
        and 'ratio' in row
        and all(map(is_number, row.values()))
    )


def draw(files: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the rows of each file, by its name."""
    names = quantities([row for rows in files.values() for row in rows])
    figure = Figure((4 * len(names) + 4, 4), layout='constrained')
    axes = figure.subplots(1, len(names) + 1, sharey=True, squeeze=False)[0]
    ratios = {
        label: [row['ratio'] for row in rows] for label, rows in files.items()
    }
    # From 0, so that a constant is seen as one.
    top = 1.02 * max(1, *map(max, ratios.values()))
    for i, (label, rows) in enumerate(files.items()):
        for axis, name in zip(axes, names, strict=False):
            x, y = columns(rows, name)
            if x:
                text = f'{label}: r = {correlation(x, y):.2f}'
                axis.scatter(x, y, 14, f'C{i}', alpha=0.5, label=text)
        axes[-1].hist(
            ratios[label],
            np.linspace(0, top, 41),
            orientation='horizontal',
            color=f'C{i}',
            alpha=0.5,
            label=f'{label}: mean {np.mean(ratios[label]):.2f}',
        )
    for axis, name in zip(axes, names, strict=False):
        axis.set_xlabel(LABELS.get(name, name))
        ticks = MaxNLocator(5, integer=name not in SHARES)
        axis.xaxis.set_major_locator(ticks)
        if name in SHARES:
            axis.xaxis.set_major_formatter(PercentFormatter(1))
    axes[-1].set_xlabel('images')
    axes[0].set(ylim=(0, top), ylabel='FLOPs over the dense twin')
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
        axis.legend(loc='lower right', fontsize='small')
    return figure


def main() -> None:
    args = parse_args()
    files = dict(zip(labels(args.files), map(read, args.files), strict=True))
    checks.check_output(args.out, '--out')
    try:
        draw(files).savefig(args.out, dpi=150)
    except (OSError, ValueError) as err:  # not writable; no such format
        raise UserError(f'--out {args.out}: {err}') from err


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
