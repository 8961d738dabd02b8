"""Fill the tables of docs/results.md from the rows of the study; draw them.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A figure
in the prose is followed by where it comes from, e.g. ``89.2<!-- shapes-box
untrained error 0.5 0.5 -->``: setting, phase, arm, budget, ratio asked, and
which metric if it isn't the accuracy, averaged over the seeds; ``-`` is none,
``A minus B`` the difference of two, ``A over B`` their ratio; after
``shapes-box:0,1`` only these seeds count. Tables and figures are written anew.
With ``--check`` nothing is written, and what differs from the rows, or has no
source, is an error.

Example::

    python tools/study/fill_results.py --check
"""

from __future__ import annotations

import argparse
import re
import sys
from operator import pos, sub, truediv
from pathlib import Path

from figure import draw_flops, draw_time
from plan import ROOT
from rows import Row, Rows, shown, value
from tables import TABLES

from mmdge.utils import UserError, launch

TABLE = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end -->)', re.DOTALL)
SOURCED = re.compile(r'(-?[\d.]+)<!-- ([^>]*) -->')
# How two figures become one.
COMBINED = {None: pos, 'minus': sub, 'over': truediv}
# What looks like a result; code, comments and links may hold anything.
FIGURE = re.compile(r'(?<![\w./-])-?\d*\.\d+(?![\w/]|<!--)')


def fill(text: str, rows: Rows) -> str:
    """Put the tables in, and the figures of the prose."""

    def make(found: re.Match) -> str:
        start, name, end = found.groups()
        if name not in TABLES:
            raise UserError(f'no table {name}; there are {", ".join(TABLES)}')
        return start + TABLES[name](rows) + end

    def look(found: re.Match) -> str:
        old, source = found.groups()
        digits = len(old.partition('.')[2])
        return f'{shown(look_up(source, rows), digits)}<!-- {source} -->'

    return SOURCED.sub(look, TABLE.sub(make, text))


def unsourced(text: str) -> list[str]:
    """Figures in the prose that no row gives."""
    prose = TABLE.sub('', text)
    for pattern in (r'```.*?```', r'`[^`]*`', r'\]\([^)]*\)'):
        prose = re.sub(pattern, '', prose, flags=re.DOTALL)
    prose = SOURCED.sub('', prose)
    return [f'{figure} has no source' for figure in FIGURE.findall(prose)]


def look_up(source: str, rows: Rows) -> float:
    """The figure that a source names, of the seeds that all of it has."""
    first, word, second = re.fullmatch(
        r'(.+?)(?: (minus|over) (.+))?', source
    ).groups()
    found = [_find(part, rows) for part in (first, second) if part]
    seeds = set.intersection(*({row['seed'] for row in r} for r, _ in found))
    if not seeds:
        raise UserError(f'no row for {source!r}')
    values = [
        value([row for row in rows if row['seed'] in seeds], *key)
        for rows, key in found
    ]
    return COMBINED[word](*values)


def _find(source: str, rows: Rows) -> tuple[list[Row], list[str]]:
    """Rows, and of what in them the figure is, if not the accuracy."""
    where, phase, arm, *rest = source.split()
    setting, _, seeds = where.partition(':')
    numbers = [None if r == '-' else float(r) for r in rest[:2]]
    found = rows.of(setting, phase, arm, *numbers)
    if seeds:
        found = [row for row in found if str(row['seed']) in seeds.split(',')]
    return found, rest[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--rows', type=Path, default=ROOT / 'docs/results.jsonl')
    add('--page', type=Path, default=ROOT / 'docs/results.md')
    add('--check', action='store_true', help='write nothing, compare')
    args = parser.parse_args()
    rows = Rows(args.rows)
    text = args.page.read_text()
    filled = fill(text, rows)
    problems = unsourced(filled)
    if args.check and filled != text:
        problems.append('the figures are not those of the rows')
    if problems:
        raise UserError(f'{args.page}: ' + '; '.join(problems))
    if not args.check:
        args.page.write_text(filled)
        stem = args.page.with_suffix('')
        draw_flops(rows, stem.with_suffix('.png'))
        draw_time(rows, stem.with_name(f'{stem.name}_time.png'))


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
