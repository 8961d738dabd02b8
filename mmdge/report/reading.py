"""Read files of which some may be broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from .records import Source


class Reader:
    """Reads what can be read and remembers what could not.

    Args:
        base (Path): Folder that paths are said from.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.problems: list[str] = []

    def name(self, path: Path) -> str:
        """A path as the report shows it."""
        return path.relative_to(self.base).as_posix()

    def complain(self, path: Path, what: str) -> None:
        """Remember a problem with a file."""
        self.problems.append(f'{self.name(path)}: {what}')

    def date(self, path: Path) -> str:
        """When a file was written, to the minute."""
        moment = datetime.fromtimestamp(path.stat().st_mtime)
        return f'{moment:%Y-%m-%d %H:%M}'

    def text(self, path: Path) -> str:
        """All of a file; nothing if it is missing or can't be read."""
        try:
            return path.read_text(encoding='utf-8', errors='replace')
        except FileNotFoundError:
            return ''
        except OSError as error:
            self.complain(path, f'cannot be read: {error.strerror}')
            return ''

    def json_lines(
        self, path: Path
    ) -> Iterator[tuple[Source, dict[str, Any]]]:
        """The objects of a file that has one per line."""
        broken = []
        for number, line in enumerate(self.text(path).split('\n'), 1):
            if not line.strip():
                continue
            entry = parse(line)
            if isinstance(entry, dict):
                yield Source(self.name(path), f'line {number}', line), entry
            else:
                broken.append(str(number))
        if broken:
            self.complain(path, f'no JSON object in line {", ".join(broken)}')


def parse(text: str) -> Any:
    """Parse JSON, whose numbers all become float; None if it is none."""
    try:
        return json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None


def numbers(entry: Any) -> dict[str, float]:
    """The entries of a JSON object that are numbers."""
    if not isinstance(entry, dict):
        return {}
    return {k: v for k, v in entry.items() if isinstance(v, float)}
