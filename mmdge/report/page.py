"""All of a report on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .figures import over_flops, over_time, scatter, training_curves
from .html import Lines, number, text
from .pictures import gallery
from .records import Collection, Run
from .tables import overview, settings, study_table, sweep_table

UNIT = (
    '1 GFLOPs = 1e9 multiply-adds; convolutions, linear layers, attention '
    'products'
)
# Longer pages begin with the curves folded.
MOST_OPEN = 6


def build_page(found: Collection, date: str) -> str:
    """Make the report.

    Args:
        found (Collection): What it is about.
        date (str): Of the report; all else depends on ``found`` alone.

    Returns:
        str: An HTML document without scripts and without links out of it.
    """
    lines = Lines()
    problems = list(found.problems)
    sections = {
        'Overview': overview_section(found, lines),
        'Accuracy against cost': cost_section(found),
        'Sweeps': sweeps_section(found, lines),
        'Studies': studies_section(found, lines),
        'Trainings': trainings_section(found.runs, lines),
        'Granularity maps': gallery(found.runs, problems),
    }
    sections['Lines behind the numbers'] = lines.as_html()
    there = {title: body for title, body in sections.items() if body}
    menu = ' '.join(
        f'<a href="#{anchor(title)}">{title}</a>' for title in there
    )
    body = '\n'.join(
        f'<section id="{anchor(title)}"><h2>{title}</h2>\n{part}</section>'
        for title, part in there.items()
    )
    style = Path(__file__).with_name('style.css').read_text('utf-8')
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; img-src data:">
<title>mmdge report</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>mmdge report</h1>
<p>{counts(found)}. {UNIT}. Written {text(date)}.</p>
<nav>{menu}</nav>
</header>
<main>
{problems_section(problems)}{body}
</main>
</body>
</html>
"""


def counts(found: Collection) -> str:
    """How much there is, in words."""
    kinds = [run.kind for run in found.runs]
    numbers = {
        'training': kinds.count('training'),
        'test': kinds.count('test'),
        'sweep': len(found.sweeps),
        'study row': len(found.rows),
    }
    return ', '.join(
        f'{count} {name}{"s" * (count > 1)}'
        for name, count in numbers.items()
        if count
    )


def anchor(title: str) -> str:
    """A title as the id of its section."""
    return title.lower().replace(' ', '-')


def problems_section(problems: Sequence[str]) -> str:
    """What could not be read."""
    if not problems:
        return ''
    items = ''.join(f'<li>{text(problem)}</li>' for problem in problems)
    return f'<aside><h2>Not shown</h2><ul>{items}</ul></aside>\n'


def overview_section(found: Collection, lines: Lines) -> str:
    """The table of everything."""
    return (
        overview(found, lines)
        + '<p class="note">Of a run its last evaluation, of sweeps and '
        'studies the least and the most. GFLOPs and ratio (over the dense '
        'twin) are means over the images; std and p95 are over the images. '
        'A region spread of 0 means routers that give every region the same '
        'answer. Numbers lead to the lines they come from.</p>'
    )


def cost_section(found: Collection) -> str:
    """Accuracy against FLOPs and against time."""
    parts = []
    for name, cost, plots in (
        ('flops', 'GFLOPs, mean over the images', over_flops(found)),
        ('time', 'ms per image', over_time(found)),
    ):
        parts += [
            scatter(f'{name}{n}', title, cost, series)
            for n, (title, series) in enumerate(plots.items(), 1)
        ]
    if not parts:
        return ''
    return (
        f'<div class="plots">{"".join(parts)}</div>'
        '<p class="note">Studies: the mean over the seeds, from the least to '
        'the most, and every seed as a dot. Times: the median, from the lower '
        'to the upper quartile. A single point is not drawn.</p>'
    )


def sweeps_section(found: Collection, lines: Lines) -> str:
    """A table for each sweep."""
    return '\n'.join(
        f'<h3 id="sweep-{n}">{text(sweep.name)}</h3>'
        f'<p class="note">{text(sweep.config)}, {text(sweep.checkpoint)}</p>'
        f'{sweep_table(sweep, lines)}'
        for n, sweep in enumerate(found.sweeps, 1)
    )


def studies_section(found: Collection, lines: Lines) -> str:
    """A table for each setting."""
    return '\n'.join(
        f'<h3 id="study-{n}">{text(setting)}, {text(metric)}</h3>'
        f'{study_table(rows, lines)}'
        for n, ((setting, metric), rows) in enumerate(
            settings(found.rows).items(), 1
        )
    )


def trainings_section(runs: Sequence[Run], lines: Lines) -> str:
    """The curves of each training, and all its evaluations."""
    trained = [run for run in runs if run.training]
    unfolded = ' open' if len(trained) <= MOST_OPEN else ''
    return '\n'.join(
        f'<details{unfolded}><summary>{text(run.name)}</summary>'
        f'{_evaluations(run, lines)}<div class="plots small">'
        f'{"".join(training_curves(run, f"run{n}"))}</div></details>'
        for n, run in enumerate(trained, 1)
    )


def _evaluations(run: Run, lines: Lines) -> str:
    if not run.evaluations:
        return ''
    metric = (run.evaluations[0].headlines or [''])[0]
    values = ' '.join(
        lines.link(entry.source, number(entry.metrics.get(metric)))
        for entry in run.evaluations
    )
    return f'<p class="note">{text(metric)}: {values}</p>'
