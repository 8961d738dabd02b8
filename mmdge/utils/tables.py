"""Tables on the screen."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table


def print_table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[str | float]],
    *notes: str,
    width: int = 100,
) -> None:
    """Print rows below a title, numbers with four digits, then notes."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*(c if isinstance(c, str) else f'{c:.4g}' for c in row))
    console = Console(width=width)
    for part in (table, *notes):
        console.print(part)
