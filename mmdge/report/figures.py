"""Curves of trainings, and accuracy against what it costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from .html import text
from .records import Collection, Run, StudyRow, Sweep
from .svg import COLOURS, MARKERS, NUM_COLOURS, SHAPES, draw


class Point(NamedTuple):
    """One place in a plot.

    Attributes:
        x (float): Cost.
        y (float): Accuracy.
        x_span (tuple, optional): Least and most.
        y_span (tuple, optional): Least and most.
        seeds (tuple): Single ``(x, y)`` that the point is the mean of.
    """

    x: float
    y: float
    x_span: tuple[float, float] | None = None
    y_span: tuple[float, float] | None = None
    seeds: tuple[tuple[float, float], ...] = ()


# Title of a plot to name of a series to its points.
Plots = dict[str, dict[str, list[Point]]]


def training_curves(run: Run, key: str) -> list[str]:
    """Loss, FLOPs ratio, learning rate and metric over the iterations.

    Args:
        run (Run): A training.
        key (str): That ids begin with.
    """
    figures = []
    for name, title in (
        ('loss', 'loss'),
        ('flops_ratio', 'FLOPs ratio'),
        ('lr', 'learning rate'),
    ):
        logged = [entry for entry in run.training if name in entry]
        x = [entry['iter'] for entry in logged]
        y = [entry[name] for entry in logged]
        if logged:
            label = f'{title} over iterations'
            figures.append(_curve(f'{key}-{name}', label, x, y, title))
    found = [e for e in run.evaluations if e.iteration and e.headlines]
    if len(found) > 1:
        metric = found[0].headlines[0]
        x = [entry.iteration for entry in found]
        y = [entry.metrics.get(metric, math.nan) for entry in found]
        label = f'{metric} over iterations'
        figures.append(_curve(f'{key}-metric', label, x, y, metric, 'o-'))
    return figures


def _curve(
    key: str,
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    title: str,
    style: str = '-',
) -> str:
    x, y = (
        [value if _drawable(value) else math.nan for value in values]
        for values in (x, y)
    )

    def plot(ax: Axes) -> None:
        ax.plot(x, y, style, color=COLOURS[0], linewidth=1.4, markersize=4)
        ax.set(xlabel='iteration', ylabel=title)
        if title == 'FLOPs ratio':
            ax.set_ylim(0, 1.05 * max([1, *filter(_drawable, y)]))

    return draw(key, label, plot, (3.6, 2.5))


def over_flops(found: Collection) -> Plots:
    """Accuracy against GFLOPs: runs, points of sweeps, rows of studies."""
    plots: Plots = defaultdict(dict)
    for run in found.runs:
        last = run.evaluations[-1] if run.evaluations else None
        x = last and last.backbone('GFLOPs')
        for metric in last.headlines if _drawable(x) else ():
            if _drawable(last.metrics[metric]):
                point = Point(x, last.metrics[metric])
                plots[_on(metric, run.dataset)][run.name] = [point]
    for sweep in found.sweeps:
        for name, points in _by_routing(sweep).items():
            line = [
                Point(p.evaluation.backbone('GFLOPs'), y)
                for p in points
                if _drawable(p.evaluation.backbone('GFLOPs'))
                and _drawable(y := p.evaluation.metrics.get(sweep.metric))
            ]
            if line:
                plots[_on(sweep.metric, sweep.dataset)][name] = line
    arms = defaultdict(list)
    for row in found.rows:
        flops = row.evaluation.backbone('GFLOPs')
        timed = row.metric == 'ms'  # which is no accuracy
        if _drawable(row.value) and _drawable(flops) and not timed:
            # Each checkpoint has a line of its own.
            names = dict.fromkeys([row.arm, row.phase])
            name = ', '.join(filter(None, names))
            if row.budget is not None:
                name += f', for {row.budget:g}'
            arms[_on(row.metric, row.setting), name].append(row)
    for (title, name), rows in arms.items():
        plots[title][name] = _means(rows)
    return _comparable(plots)


def over_time(found: Collection) -> Plots:
    """Accuracy against the measured time of sweeps."""
    plots: Plots = defaultdict(dict)
    for sweep in found.sweeps:
        for name, points in _by_routing(sweep).items():
            line = [
                Point(1e3 * middle, y, (1e3 * lower, 1e3 * upper))
                for p in points
                if p.seconds
                and _drawable(y := p.evaluation.metrics.get(sweep.metric))
                for lower, middle, upper in [p.seconds]
            ]
            if line:
                plots[_on(sweep.metric, sweep.dataset)][name] = line
    return _comparable(plots)


def scatter(
    key: str, title: str, cost: str, series: dict[str, list[Point]]
) -> str:
    """One plot of accuracy against cost with a legend, as HTML.

    Args:
        key (str): That ids begin with.
        title (str): Metric and data.
        cost (str): Label of the horizontal axis.
        series (dict): Name to points; several are joined by a line.
    """

    def plot(ax: Axes) -> None:
        for number, points in enumerate(series.values()):
            _draw_series(ax, points, number)
        ax.set(xlabel=cost, ylabel=title.split(',')[0])
        ax.margins(0.08)
        ax.set_xlim(left=0)

    svg = draw(key, f'{title} against {cost}', plot, (4.8, 3.4))
    legend = ''.join(
        f'<li><span style="color:var(--series-{n % NUM_COLOURS})">'
        f'{SHAPES[n % len(SHAPES)]}</span> {text(name)}</li>'
        for n, name in enumerate(series)
    )
    return (
        f'<figure><figcaption>{text(title)}</figcaption>{svg}'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _draw_series(ax: Axes, points: list[Point], number: int) -> None:
    colour = COLOURS[number % NUM_COLOURS]
    points = sorted(points, key=lambda p: (p.x, p.y))
    x, y = [p.x for p in points], [p.y for p in points]
    for p in points:
        if p.x_span:
            ax.plot(p.x_span, [p.y, p.y], color=colour, linewidth=1.2)
        if p.y_span:
            ax.plot([p.x, p.x], p.y_span, color=colour, linewidth=1.2)
        ax.plot(
            [x for x, _ in p.seeds],
            [y for _, y in p.seeds],
            '.',
            color=colour,
            markersize=3,
            alpha=0.8,
        )
    ax.plot(
        x,
        y,
        f'{MARKERS[number % len(MARKERS)]}-',
        color=colour,
        linewidth=1.2,
        markersize=6,
    )


def _means(rows: Sequence[StudyRow]) -> list[Point]:
    """One point per ratio, the mean over its seeds."""
    ratios = defaultdict(list)
    for row in rows:
        place = (row.evaluation.backbone('GFLOPs'), row.value)
        ratios[row.asked].append(place)
    points = []
    for places in ratios.values():
        x, y = zip(*places, strict=True)
        points.append(
            Point(
                sum(x) / len(x),
                sum(y) / len(y),
                y_span=(min(y), max(y)),
                seeds=tuple(places) if len(places) > 1 else (),
            )
        )
    return points


def _by_routing(sweep: Sweep) -> dict[str, list]:
    """Points of a sweep, by the name of their series."""
    names = defaultdict(list)
    for point in sweep.points:
        names[f'{sweep.name}, {point.routing}'].append(point)
    return names


def _on(metric: str, dataset: str) -> str:
    return f'{metric}, {dataset}' if dataset else metric


def _comparable(plots: Plots) -> Plots:
    """Leave out plots of a single point."""
    return {
        title: series
        for title, series in plots.items()
        if sum(map(len, series.values())) > 1
    }


def _drawable(value: float | None) -> bool:
    """Whether a number is there, and within what matplotlib bears."""
    return value is not None and abs(value) < 1e100
