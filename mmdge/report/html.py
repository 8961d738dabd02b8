"""Small pieces of HTML, in which nothing of a file is markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .records import Source

NOTHING = '–'


def text(value: object) -> str:
    """Anything as text of a page, or of an attribute in double quotes."""
    return escape(str(value)) or NOTHING


def number(value: float | None, form: str = '.4g') -> str:
    """A number as it is written in a table."""
    return NOTHING if value is None else format(value, form)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box of its own, which scrolls.

    Args:
        columns (Sequence[str]): Titles; those that begin with ``>`` are of
            columns of numbers.
        rows (Iterable): Cells, as HTML.
    """
    kinds = [' class="n"' if c.startswith('>') else '' for c in columns]
    head = ''.join(
        f'<th{kind}>{text(column.removeprefix(">"))}</th>'
        for column, kind in zip(columns, kinds, strict=True)
    )
    body = ''.join(
        '<tr>'
        + ''.join(
            f'<td{kind}>{cell}</td>'
            for cell, kind in zip(row, kinds, strict=True)
        )
        + '</tr>\n'
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>'
    )


class Lines:
    """The lines behind the numbers, each with an anchor."""

    def __init__(self) -> None:
        self._ids: dict[Source, str] = {}

    def link(self, source: Source, shown: str) -> str:
        """Lead from what is shown, which is HTML, to where it stands."""
        anchor = self._ids.setdefault(source, f'line-{len(self._ids) + 1}')
        return f'<a href="#{anchor}">{shown}</a>'

    def as_html(self) -> str:
        """All lines that a link leads to, file by file."""
        files: dict[str, list[Source]] = {}
        for source in self._ids:
            files.setdefault(source.path, []).append(source)
        # A browser opens the details when a link leads into them.
        return '\n'.join(
            f'<details><summary><code>{text(path)}</code></summary>'
            + ''.join(
                f'<div class="line" id="{self._ids[source]}">'
                f'<span>{text(source.place)}</span>'
                f'<pre>{text(source.text)}</pre></div>'
                for source in sources
            )
            + '</details>'
            for path, sources in files.items()
        )
