"""Tables of runs, sweeps and studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from .html import NOTHING, Lines, number, table, text
from .records import Collection, Evaluation, Run, StudyRow, Sweep

# Column, name in BackboneFLOPs' keys, how it is written.
FIGURES = (
    ('>GFLOPs', 'GFLOPs', '.4g'),
    ('>GFLOPs p95', 'GFLOPs_p95', '.4g'),
    ('>ratio', 'FLOPs_ratio', '.3f'),
    ('>ratio std', 'FLOPs_ratio_std', '.3f'),
    ('>region spread', 'region_spread', '.3f'),
)
_FIGURE_COLUMNS = [column for column, *_ in FIGURES]


def overview(found: Collection, lines: Lines) -> str:
    """One row for each run, sweep and setting of a study."""
    columns = ('name and config', 'kind and date', 'metric', '>value')
    rows = [
        *(_run_row(run, lines) for run in found.runs),
        *(
            _range_row(
                f'#sweep-{n}',
                about(
                    sweep.name,
                    PurePath(sweep.config).stem,
                    'sweep',
                    sweep.date,
                ),
                sweep.metric,
                [point.evaluation for point in sweep.points],
            )
            for n, sweep in enumerate(found.sweeps, 1)
        ),
        *(
            _range_row(
                f'#study-{n}',
                about(_paths(rows), setting, 'study', rows[-1].date),
                metric,
                [
                    row.evaluation._replace(
                        metrics={**row.evaluation.metrics, metric: row.value}
                    )
                    for row in rows
                ],
            )
            for n, ((setting, metric), rows) in enumerate(
                settings(found.rows).items(), 1
            )
        ),
    ]
    return table([*columns, *_FIGURE_COLUMNS], rows)


def about(name: str, config: str, kind: str, date: str) -> list[str]:
    """The cells that say what a row is of."""
    return [
        f'{text(name)}<br><small>{text(config)}</small>',
        f'{text(kind)}<br><small>{text(date)}</small>',
    ]


def _run_row(run: Run, lines: Lines) -> list[str]:
    first = about(run.name, run.config, run.kind, run.date)
    if not run.evaluations:
        return [*first, *[NOTHING] * (2 + len(FIGURES))]
    last = run.evaluations[-1]
    return [
        *first,
        '<br>'.join(map(text, last.headlines)) or NOTHING,
        '<br>'.join(
            lines.link(last.source, number(last.metrics[name]))
            for name in last.headlines
        )
        or NOTHING,
        *figures(last, lines),
    ]


def _range_row(
    anchor: str,
    first: Sequence[str],
    metric: str,
    evaluations: Sequence[Evaluation],
) -> list[str]:
    """A row that leads to a table with the single numbers."""

    def cell(name: str, form: str) -> str:
        values = [e.metrics[name] for e in evaluations if name in e.metrics]
        ends = span(values, form)
        return f'<a href="{anchor}">{ends}</a>' if values else NOTHING

    return [
        *first,
        text(metric),
        cell(metric, '.3g'),
        *(cell(f'backbone/{name}', '.3g') for _, name, _ in FIGURES),
    ]


def figures(evaluation: Evaluation, lines: Lines) -> list[str]:
    """The cells of FIGURES."""
    values = [(evaluation.backbone(name), form) for _, name, form in FIGURES]
    return [
        NOTHING
        if value is None
        else lines.link(evaluation.source, number(value, form))
        for value, form in values
    ]


def sweep_table(sweep: Sweep, lines: Lines) -> str:
    """One row for each point."""
    columns = (
        'routing',
        '>price',
        '>asked',
        '>calibrated',
        f'>{sweep.metric}',
    )
    timed = any(point.seconds for point in sweep.points)
    rows = []
    for point in sweep.points:
        value = number(point.evaluation.metrics.get(sweep.metric))
        lower, median, upper = point.seconds or [None] * 3
        rows.append(
            [
                text(point.routing),
                number(point.price),
                number(point.ratio_asked, '.3f'),
                number(point.ratio_calibrated, '.3f'),
                lines.link(point.evaluation.source, value),
                *figures(point.evaluation, lines),
                *[
                    NOTHING
                    if median is None
                    else f'{1e3 * median:.4g} '
                    f'<small>{span([1e3 * lower, 1e3 * upper])}</small>'
                ]
                * timed,
            ]
        )
    return table([*columns, *_FIGURE_COLUMNS, *['>ms'] * timed], rows)


def study_table(rows: Sequence[StudyRow], lines: Lines) -> str:
    """One row for each arm, phase and ratio of a setting."""
    columns = ('arm', 'phase', '>budget', '>asked', f'>{rows[0].metric}')
    columns += ('>min – max', '>ratio', '>GFLOPs', '>GFLOPs p95', 'seeds')
    arms: dict[tuple, list[StudyRow]] = {}
    for row in rows:
        key = (row.arm, row.phase, row.budget, row.asked)
        arms.setdefault(key, []).append(row)
    return table(
        columns,
        (
            [
                text(arm),
                text(phase),
                number(budget),
                number(asked),
                lines.link(
                    same[0].evaluation.source, mean([r.value for r in same])
                ),
                span([row.value for row in same]),
                *(
                    mean([row.evaluation.backbone(name) for row in same], form)
                    for name, form in (
                        ('FLOPs_ratio', '.3f'),
                        ('GFLOPs', '.4g'),
                        ('GFLOPs_p95', '.4g'),
                    )
                ),
                ' '.join(
                    lines.link(row.evaluation.source, text(row.seed))
                    for row in same
                ),
            ]
            for (arm, phase, budget, asked), same in arms.items()
        ),
    )


def settings(
    rows: Iterable[StudyRow],
) -> dict[tuple[str, str], list[StudyRow]]:
    """Rows of studies by setting and metric."""
    found: dict[tuple[str, str], list[StudyRow]] = {}
    for row in rows:
        found.setdefault((row.setting, row.metric), []).append(row)
    return found


def mean(values: Iterable[float | None], form: str = '.4g') -> str:
    """Mean of the values that are there."""
    there = [value for value in values if value is not None]
    return number(sum(there) / len(there), form) if there else NOTHING


def span(values: Sequence[float], form: str = '.4g') -> str:
    """Least and most, once if they are the same."""
    ends = [format(end(values), form) for end in (min, max) if values]
    return ' – '.join(dict.fromkeys(ends))


def _paths(rows: Iterable[StudyRow]) -> str:
    return ', '.join(dict.fromkeys(row.path for row in rows))
