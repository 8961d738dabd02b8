"""What is lost against FLOPs, accuracy against time; a panel per setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plan import BUDGET, SWEEP
from rows import Rows, points, value
from tables import NAMES, pairs

FLOPS = 'backbone/GFLOPs'
# Name, and colours that most colour-blind people can tell apart.
LINES = (
    ('untrained', 'error', 'without training', '#56b4e9'),
    ('finetuned', 'error', 'fine-tuned at .5', '#0072b2'),
    ('finetuned', 'error-many', 'fine-tuned for many budgets', '#d0a000'),
)
# What the arms of a phase are compared with.
DENSE = dict(untrained='static', finetuned='dense', scratch='dense')
DOTS = (
    ('finetuned', 'dense', None, None, 's', '#000000'),
    ('finetuned', 'variance', BUDGET, BUDGET, 'v', '#009e73'),
    ('finetuned', 'learned', BUDGET, BUDGET, 'D', '#cc79a7'),
    ('finetuned', 'shuffled', BUDGET, BUDGET, '^', '#882255'),
    ('finetuned', 'uniform-mid', BUDGET, BUDGET, 'P', '#e69f00'),
    ('finetuned', 'random-mid', BUDGET, BUDGET, 'X', '#d55e00'),
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
    """Draw mean differences, and their range over the seeds, into a PNG."""
    settings = rows.settings('untrained', 'static')
    _draw(
        rows,
        settings,
        path,
        _fill_flops,
        'GFLOPs of the backbone',
        'AP or mIoU, points above the dense model',
    )


def draw_time(rows: Rows, path: Path) -> None:
    """Draw the same against time, for the seed that was timed."""
    settings = rows.settings('time', 'dense')
    _draw(
        rows,
        settings,
        path,
        _fill_time,
        'ms of the backbone',
        'AP or mIoU, points',
    )


def _draw(
    rows: Rows,
    settings: list[str],
    path: Path,
    fill: Callable[[Axes, Rows, str], None],
    xlabel: str,
    ylabel: str,
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
    panels[0].set_ylabel(ylabel)
    figure.legend(
        known.values(), known, loc='outside lower center', ncols=4, fontsize=8
    )
    figure.savefig(path, dpi=110)


def _fill_flops(panel: Axes, rows: Rows, setting: str) -> None:
    def gain(phase: str, *arm: object) -> tuple[float, list[float]] | None:
        found = rows.of(setting, phase, *arm)
        base = rows.of(setting, phase, DENSE[phase], None, None)
        paired = list(pairs(found, base).values())
        return (value(found, FLOPS), paired) if paired else None

    for phase, arm, label, colour in LINES:
        line = [gain(phase, arm, BUDGET, ratio) for ratio in SWEEP]
        line = [point for point in line if point]
        if line:
            flops, gains = zip(*line, strict=True)
            panel.plot(
                flops,
                list(map(mean, gains)),
                'o-',
                ms=3,
                color=colour,
                label=f'error: {label}',
            )
            panel.fill_between(
                flops,
                list(map(min, gains)),
                list(map(max, gains)),
                color=colour,
                alpha=0.2,
            )
    for phase, arm, budget, asked, marker, colour in DOTS:
        if point := gain(phase, arm, budget, asked):
            flops, gains = point
            panel.errorbar(
                flops,
                mean(gains),
                _bars(gains),
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
                    *single[-1],
                    _bars(list(map(points, seeds))),
                    quartiles,
                    color=colour,
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


def _bars(values: Sequence[float]) -> list[list[float]]:
    """From the mean to the range's ends, as errorbar wants it."""
    middle = mean(values)
    return [[middle - min(values)], [max(values) - middle]]
