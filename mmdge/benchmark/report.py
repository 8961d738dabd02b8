"""The table and the picture of tools/analysis_tools/benchmark.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.table import Table

# Column, key of a row, how it is written, factor.
COLUMNS = (
    ('ms', 'median', '.4g', 1e3),
    ('quartiles', None, '', 1),
    ('GFLOPs', 'flops', '.4g', 1e-9),
    ('FLOPs ratio', 'flops_ratio', '.3f', 1),
    ('time ratio', 'time_ratio', '.3f', 1),
    ('gap', 'gap', '+.3f', 1),
    ('realised', 'realised_share', '.2f', 1),
    ('peak', 'peak_share', '.0%', 1),
    ('MiB', 'memory', '.1f', 2**-20),
    ('images/s', 'images_per_second', '.4g', 1),
)

MARKERS = 'osD^vP*X'


def title(setting: Mapping[str, Any]) -> str:
    """Size, batch and precision of a setting in words."""
    height, width = setting['size']
    return (
        f'{height} x {width}, batch {setting["batch_size"]}, '
        f'{setting["dtype"]}'
    )


def as_table(setting: Mapping[str, Any]) -> Table:
    """Make a table of a setting, a row per arm."""
    table = Table(title=title(setting))
    table.add_column('', no_wrap=True)
    for name, *_ in COLUMNS:
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('')
    for row in setting['rows']:
        if row['out_of_memory']:
            blank = [''] * len(COLUMNS)
            table.add_row(row['name'], *blank, 'out of memory')
            continue
        table.add_row(row['name'], *_cells(row), row['note'])
        if 'backbone' in row:
            table.add_row('  its backbone', *_cells(row['backbone']), '')
    return table


def _cells(row: Mapping[str, Any]) -> Iterable[str]:
    for _, key, form, factor in COLUMNS:
        if key is None:
            yield f'{1e3 * row["lower"]:.4g}-{1e3 * row["upper"]:.4g}'
        elif row.get(key) is None:
            yield '-'
        else:
            yield format(row[key] * factor, form)


def draw(settings: list[Mapping[str, Any]], path: str | Path) -> None:
    """Draw time over FLOPs; with several sizes or batches, growth too.

    Args:
        settings (list[dict]): As in the JSON of the benchmark.
        path: A picture, whose format is that of its name.
    """
    several = len({_megapixels(setting) for setting in settings}) > 1
    figure = Figure((15 if several else 5.5, 5), layout='constrained')
    axes = figure.subplots(1, 3 if several else 1, squeeze=False)[0]
    names = dict.fromkeys(
        row['name'] for setting in settings for row in setting['rows']
    )
    colours = {name: f'C{i % 10}' for i, name in enumerate(names)}
    _draw_ratios(axes[0], settings, colours)
    for i, setting in enumerate(settings if len(settings) > 1 else []):
        axes[0].plot(
            [], [], MARKERS[i % 8], color='grey', label=title(setting)
        )
    if several:
        for ax, key, label, factor in (
            (axes[1], 'median', 'time per batch, ms', 1e3),
            (axes[2], 'memory', 'peak memory, MiB', 2**-20),
        ):
            _draw_growth(ax, settings, colours, key, factor)
            ax.set(xlabel='megapixels in a batch', ylabel=label)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
    for name, colour in colours.items():
        axes[0].plot([], [], 's', color=colour, label=name)
    figure.legend(loc='outside lower center', ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _megapixels(setting: Mapping[str, Any]) -> float:
    height, width = setting['size']
    return setting['batch_size'] * height * width / 1e6


def _draw_ratios(
    ax: Axes, settings: list[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    points = [
        (row, MARKERS[i % 8])
        for i, setting in enumerate(settings)
        for row in setting['rows']
        if row.get('time_ratio') is not None
    ]
    for row, marker in points:
        ax.plot(
            row['flops_ratio'],
            row['time_ratio'],
            marker,
            color=colours[row['name']],
            alpha=0.8,
        )
    top = 1.1 * max(
        [1]
        + [row[k] for row, _ in points for k in ('flops_ratio', 'time_ratio')]
    )
    ax.plot([0, top], [0, top], '--', color='grey', zorder=0)
    ax.set(
        xlim=(0, 1.1 * max([1] + [row['flops_ratio'] for row, _ in points])),
        ylim=(0, top),
        xlabel='FLOPs over the dense twin',
        ylabel='time over the dense twin',
        title='on the line, saved FLOPs are saved time',
    )


def _draw_growth(
    ax: Axes,
    settings: list[Mapping[str, Any]],
    colours: Mapping[str, str],
    key: str,
    factor: float,
) -> None:
    for name, colour in colours.items():
        for dtype in dict.fromkeys(s['dtype'] for s in settings):
            points = sorted(
                (_megapixels(setting), row[key] * factor)
                for setting in settings
                for row in setting['rows']
                if setting['dtype'] == dtype
                and row['name'] == name
                and not row['out_of_memory']
            )
            if points:
                ax.plot(*zip(*points, strict=True), 'o-', color=colour)
    ax.set(xscale='log', yscale='log')
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter('{x:g}')
        axis.set_minor_locator(NullLocator())
