"""Accuracy against FLOPs and against time, one panel per setting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plan import BUDGET, SWEEP
from rows import Row, Rows, points, value
from tables import NAMES

FLOPS = 'backbone/GFLOPs'
# Name, and colours that most colour-blind people can tell apart.
LINES = (
    ('untrained', 'error', 'without training', '#56b4e9'),
    ('finetuned', 'error', 'fine-tuned at .5', '#0072b2'),
    ('finetuned', 'error-many', 'fine-tuned for many budgets', '#d0a000'),
)
DOTS = (
    ('finetuned', 'dense', None, None, 's', '#000000'),
    ('finetuned', 'variance', BUDGET, BUDGET, 'v', '#009e73'),
    ('finetuned', 'learned', BUDGET, BUDGET, 'D', '#cc79a7'),
    ('finetuned', 'shuffled', BUDGET, BUDGET, '^', '#882255'),
    ('finetuned', 'uniform-mid', BUDGET, BUDGET, 'P', '#e69f00'),
    ('finetuned', 'random-mid', BUDGET, BUDGET, 'X', '#d55e00'),
    # Trained longer, and in one schedule: to be compared with one another.
    ('scratch', 'dense', None, None, 's', '#999999'),
    ('scratch', 'smaller', BUDGET, None, '*', '#999999'),
)
# Those that are timed.
TIMED = (
    ('finetuned', 'error', BUDGET, SWEEP, 'o', '#0072b2'),
    ('finetuned', 'dense', None, (None,), 's', '#000000'),
    ('scratch', 'dense', None, (None,), 's', '#999999'),
    ('scratch', 'smaller', BUDGET, (None,), '*', '#999999'),
)


def draw_flops(rows: Rows, path: Path) -> None:
    """Draw means, and the range over the seeds, into a PNG."""
    settings = rows.settings('untrained', 'static')
    _draw(rows, settings, path, _fill_flops, 'GFLOPs of the backbone')


def draw_time(rows: Rows, path: Path) -> None:
    """Draw the same against time, for the seed that was timed."""
    settings = rows.settings('time', 'dense')
    _draw(rows, settings, path, _fill_time, 'ms of the backbone')


def _draw(
    rows: Rows,
    settings: list[str],
    path: Path,
    fill: Callable[[Axes, Rows, str], None],
    xlabel: str,
) -> None:
    figure = Figure(
        figsize=(max(9, 3.4 * len(settings)), 4.4), layout='constrained'
    )
    panels = figure.subplots(1, max(1, len(settings)), squeeze=False)[0]
    known = {}
    for panel, setting in zip(panels, settings, strict=False):
        fill(panel, rows, setting)
        panel.set(title=setting, xlabel=xlabel, xlim=(0, None))
        panel.grid(alpha=0.3)
        handles, labels = panel.get_legend_handles_labels()
        known.update(zip(labels, handles, strict=True))
    panels[0].set_ylabel('AP or mIoU, points')
    figure.legend(
        known.values(), known, loc='outside lower center', ncols=4, fontsize=8
    )
    figure.savefig(path, dpi=110)


def _fill_flops(panel: Axes, rows: Rows, setting: str) -> None:
    for phase, arm, label, colour in LINES:
        found = [rows.of(setting, phase, arm, asked=r) for r in SWEEP]
        found = [seeds for seeds in found if seeds]
        if found:
            flops = [value(seeds, FLOPS) for seeds in found]
            panel.plot(
                flops,
                [value(seeds) for seeds in found],
                'o-',
                ms=3,
                color=colour,
                label=f'error: {label}',
            )
            lows, highs = zip(*map(_range, found), strict=True)
            panel.fill_between(flops, lows, highs, color=colour, alpha=0.2)
    for phase, arm, budget, asked, marker, colour in DOTS:
        seeds = rows.of(setting, phase, arm, budget, asked)
        if seeds:
            panel.errorbar(
                value(seeds, FLOPS),
                value(seeds),
                _bars(seeds),
                fmt=marker,
                color=colour,
                label=_name(arm, phase),
            )


def _fill_time(panel: Axes, rows: Rows, setting: str) -> None:
    for phase, arm, budget, ratios, marker, colour in TIMED:
        single, batch = [], []
        for asked in ratios:
            for timed in rows.of(setting, 'time', arm, budget, asked):
                seeds = [
                    row
                    for row in rows.of(setting, phase, arm, budget, asked)
                    if row['seed'] == timed['seed']
                ]
                if not seeds:
                    continue
                middle, spent = timed['value'], timed['metrics']
                quartiles = [
                    [middle - spent['lower']],
                    [spent['upper'] - middle],
                ]
                single.append((middle, value(seeds)))
                batch.append((spent['ms_in_batch'], value(seeds)))
                panel.errorbar(
                    *single[-1], _bars(seeds), quartiles, color=colour
                )
        style = dict(marker=marker, color=colour)
        if single:
            name = _name(arm, phase)
            panel.plot(*zip(*single, strict=True), '-', label=name, **style)
            panel.plot(
                *zip(*batch, strict=True),
                '--',
                label=f'{name}, per image of a batch',
                markerfacecolor='white',
                **style,
            )


def _name(arm: str, phase: str) -> str:
    name = NAMES[arm].replace('*', '')
    return name + ', from scratch' * (phase == 'scratch')


def _range(seeds: list[Row]) -> tuple[float, float]:
    values = [points(row) for row in seeds]
    return min(values), max(values)


def _bars(seeds: list[Row]) -> list[list[float]]:
    """From the mean to the range's ends, as errorbar wants it."""
    low, high = _range(seeds)
    return [[value(seeds) - low], [high - value(seeds)]]
