"""Accuracy against cost, and other curves, as matplotlib draws them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

# As matplotlib draws and as HTML shows them.
COLOURS = [to_hex(colour) for colour in matplotlib.color_sequences['tab10']]
MARKERS, SHAPES = 'os^Dvp*', '●■▲◆▼⬟★'
STYLE = {'text.parse_math': False, 'svg.hashsalt': '', 'svg.fonttype': 'none'}


class Plot(NamedTuple):
    """Labels of the axes, title, and the points of each series.

    A point is an array ``(2, 3)``: least, middle and most of x and of y.
    """

    x: str
    y: str
    title: str
    series: dict[str, list[np.ndarray]]


def draw(plots: Sequence[Plot], width: float, height: float) -> Figure:
    """Draw plots side by side, each as large as told, in inches."""
    figure = Figure((width * len(plots), height), layout='constrained')
    panels = figure.subplots(1, len(plots), squeeze=False)[0]
    names = [*dict.fromkeys(name for plot in plots for name in plot.series)]
    for panel, plot in zip(panels, plots, strict=True):
        for name, points in plot.series.items():
            n = names.index(name)
            points = np.array(sorted(points, key=lambda p: tuple(p[:, 1])))
            bars = np.abs(points[..., ::2] - points[..., 1:2])
            dx, dy = (b.T if b.any() else None for b in bars.swapaxes(0, 1))
            line = '-' + MARKERS[n % len(MARKERS)] * (len(points) < 50)
            style = dict(color=COLOURS[n % len(COLOURS)], label=name)
            panel.errorbar(*points[..., 1].T, dy, dx, line, ms=5, **style)
        panel.set(xlabel=plot.x, ylabel=plot.y, title=plot.title)
        panel.grid(alpha=0.3)
        panel.set_xlim(left=0)
    return figure


def svg(plot: Plot, width: float, height: float) -> str:
    """A plot as an SVG in base64, whose names are shown as they are."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = draw([plot], width, height)
        figure.savefig(file, format='svg', metadata=dict(Date=None))
    return base64.b64encode(file.getvalue()).decode()
