"""Matplotlib figures as SVG that is part of a page.

Text stays text; ink and series take their colours from the page's style
sheet (``currentColor``, ``--series-<n>``), so that they follow its scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NUM_COLOURS = 7
# Stand-ins which matplotlib understands and nothing else uses.
INK = '#010203'
COLOURS = [f'#0a0b{number:02x}' for number in range(NUM_COLOURS)]
# Of matplotlib, and as a legend in HTML shows them.
MARKERS = 'os^Dv'
SHAPES = '●■▲◆▼'

_STYLE = {
    'font.size': 10,
    'font.family': 'sans-serif',
    'axes.labelcolor': INK,
    'axes.edgecolor': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': INK,
    'grid.alpha': 0.15,
    'text.color': INK,
    'text.parse_math': False,
    'xtick.color': INK,
    'ytick.color': INK,
    'svg.fonttype': 'none',
}


def draw(
    key: str,
    label: str,
    plot: Callable[[Axes], None],
    size: tuple[float, float],
) -> str:
    """Draw one plot.

    Args:
        key (str): Unlike that of any other figure of the page: ids begin
            with it.
        label (str): For those who cannot see it.
        plot (Callable): Given the axes to draw on.
        size (tuple): Width and height in inches, at 10 points of type.

    Returns:
        str: An ``svg`` element as wide as what it is in.
    """
    with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': key}):
        figure = Figure(size, layout='constrained')
        plot(figure.subplots())
        file = io.StringIO()
        nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(file, format='svg', transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :]
    # One figure's rules and names would hold for all of the page.
    svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{key}-', svg)
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        # No template, in which the label's backslashes would count.
        lambda m: f'<svg {m[1]} role="img" aria-label="{escape(label)}">',
        svg,
        count=1,
    ).replace('xlink:href', 'href')
    svg = svg.replace(INK, 'currentColor')
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f'var(--series-{number})')
    return svg.strip()
