"""Find what a report is about."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmdge.utils import UserError

from .reading import Reader
from .records import Collection, StudyRow
from .results import read_rows, read_sweep
from .runs import STAMP, read_run


def collect(folders: Sequence[str | os.PathLike]) -> Collection:
    """Read every run, sweep and study below some folders.

    Args:
        folders: Work dirs, or folders above them.

    Raises:
        UserError: If one is no folder, or nothing is found in any.
    """
    roots = [Path(folder).expanduser().resolve() for folder in folders]
    for folder, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise UserError(f'{folder} is no folder; name work dirs of runs')
    reader = Reader(Path(os.path.commonpath([above(root) for root in roots])))
    found = Collection(problems=reader.problems)
    # A folder may be given twice, or lie in another.
    for path in sorted({path for root in roots for path in below(root)}):
        if STAMP.fullmatch(path.name):
            run = read_run(path, reader)
            swept = (path.parent / 'sweep.json').exists()
            if run and not (swept and run.kind == 'test'):  # the sweep's own
                found.runs.append(run)
        elif path.name == 'sweep.json':
            sweep = read_sweep(path, reader)
            found.sweeps += [sweep] if sweep else []
        elif path.suffix == '.jsonl':
            found.rows += read_rows(path, reader)
    found.rows = without_copies(found.rows)
    if not (found.runs or found.sweeps or found.rows):
        useless = ''.join(f'; {problem}' for problem in found.problems)
        raise UserError(
            f'nothing to report in {", ".join(map(str, folders))}: looked '
            'for <work_dir>/<timestamp>/ with a log, vis_data/scalars.json '
            f'or <timestamp>.json, for sweep.json and for *.jsonl{useless}'
        )
    repeated = Counter(run.name for run in found.runs)
    for run in found.runs:
        if repeated[run.name] > 1:  # the work dir was used again
            run.name = f'{run.name}, {run.date}'
    return found


def without_copies(rows: list[StudyRow]) -> list[StudyRow]:
    """Each row once, though files may hold the same."""
    first = {row._replace(path='', evaluation=None): row for row in rows[::-1]}
    return list(first.values())[::-1]


def above(root: Path) -> Path:
    """The folder to say paths from: above a work dir, not in it."""
    return root.parent.parent if STAMP.fullmatch(root.name) else root.parent


def below(root: Path) -> list[Path]:
    """All that may be of interest in a folder, itself included."""
    return [
        path
        for path in (root, *root.rglob('*'))
        if path.suffix == '.jsonl'
        or path.name == 'sweep.json'
        or (STAMP.fullmatch(path.name) and path.is_dir())
    ]
