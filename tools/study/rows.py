"""The rows of the study: JSON lines, one per figure and seed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from plan import BUDGET, SETTINGS, Arm

from mmdge.utils import UserError

Row = dict[str, Any]
# What a row is about; `asked` is the ratio that its price was found for.
KEY = ('setting', 'seed', 'phase', 'arm', 'budget', 'asked')


class Rows:
    """A file of rows, which only grows.

    Args:
        path (Path): JSON lines; need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[tuple, Row] = {}
        for row in map(json.loads, _whole_lines(path)):
            if self._rows.setdefault(_key(row), row) != row:
                raise UserError(
                    f'{path} has two rows of {_key(row)} that differ; keep one'
                )

    def have(self, setting: str, seed: int, arm: Arm) -> bool:
        """Whether all rows of an arm are there."""
        head = (setting, seed, arm.phase, arm.name, arm.budget)
        return all((*head, asked) in self._rows for asked in arm.ratios)

    def add(self, rows: Sequence[Row]) -> None:
        """Append those that are not there yet."""
        with self.path.open('a') as file:
            # Of threads and processes, one at a time.
            fcntl.flock(file, fcntl.LOCK_EX)
            # What was cut off gives way; a reader leaves it as it is, since
            # it may be just being written.
            file.truncate(len(''.join(_whole_lines(self.path)).encode()))
            for row in rows:
                if _key(row) not in self._rows:
                    self._rows[_key(row)] = row
                    file.write(json.dumps(row) + '\n')

    def of(
        self,
        setting: str,
        phase: str,
        arm: str,
        budget: float | None = BUDGET,
        asked: float | None = BUDGET,
    ) -> list[Row]:
        """The rows of one figure, one per seed."""
        wanted = (phase, arm, budget, asked)
        return [
            row
            for key, row in sorted(self._rows.items(), key=_by_seed)
            if key[0] == setting and key[2:] == wanted
        ]

    def settings(self, phase: str, arm: str) -> list[str]:
        """The settings that have rows of an arm, in the plan's order."""
        there = {key[0] for key in self._rows if key[2:4] == (phase, arm)}
        return [name for name in SETTINGS if name in there]


def _whole_lines(path: Path) -> list[str]:
    """The lines without one that a killed process left unfinished."""
    text = path.read_text() if path.exists() else ''
    return [line for line in text.splitlines(True) if line.endswith('\n')]


def _key(row: Row) -> tuple:
    return tuple(row[name] for name in KEY)


def _by_seed(item: tuple[tuple, Row]) -> int:
    return item[0][1]


def points(row: Row) -> float:
    """Accuracy in points: AP and mIoU alike from 0 to 100."""
    return row['value'] * (1 if row['metric'] == 'mIoU' else 100)


def value(rows: Sequence[Row], key: str = 'accuracy') -> float:
    """Mean over the seeds of one quantity."""
    if key == 'accuracy':
        return mean(map(points, rows))
    if key == 'ms':  # of the rows that are times
        return mean(row['value'] for row in rows)
    return mean(row['metrics'][key] for row in rows)


def shown(number: float, digits: int, sign: str = '') -> str:
    """A figure, rounded alike wherever it is shown."""
    # What a sum of decimals leaves is cut off, or 1.55 may be 1.5; and 0 has
    # no sign.
    exact = round(round(number, 6), digits) + 0.0
    return f'{exact:{sign}.{digits}f}'
