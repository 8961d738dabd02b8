"""The rows of the study: JSON lines, one per figure and seed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import BUDGET, Arm

from mmdge.utils import UserError

Row = dict[str, Any]
ROWS = Path(__file__).with_name('rows.jsonl')
# What a row is about; `asked` is the ratio that its price was found for.
KEY = ('setting', 'seed', 'phase', 'arm', 'budget', 'asked')


class Rows:
    """A file of rows, which only grows.

    Args:
        path (Path): JSON lines; need not be there.

    Raises:
        UserError: If two rows of one figure and seed differ.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[tuple, Row] = {}
        for row in map(json.loads, _whole_lines(path)):
            if self._rows.setdefault(_key(row), row) != row:
                raise UserError(
                    f'{path} has two rows of {_key(row)} that differ; keep one'
                )

    def __iter__(self):
        return iter(self._rows.values())

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
            self._rows[key]
            for key in sorted(self._rows, key=lambda key: key[1])
            if key[0] == setting and key[2:] == wanted
        ]


def _whole_lines(path: Path) -> list[str]:
    """The lines without one that a killed process left unfinished."""
    text = path.read_text() if path.exists() else ''
    return [line for line in text.splitlines(True) if line.endswith('\n')]


def _key(row: Row) -> tuple:
    return tuple(row[name] for name in KEY)
