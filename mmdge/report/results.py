"""Read sweeps of budgets and rows of studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .reading import Reader, numbers, parse
from .records import Evaluation, Source, StudyRow, Sweep, SweepPoint
from .runs import dataset_of


def read_sweep(path: Path, reader: Reader) -> Sweep | None:
    """Read what ``sweep_budget.py`` left.

    Args:
        path (Path): A ``sweep.json``.
        reader (Reader): Remembers what cannot be read.

    Returns:
        Sweep, optional: None if the file holds no point.
    """
    content = parse(reader.text(path))
    entries = content.get('points') if isinstance(content, dict) else None
    points = []
    for number, entry in enumerate(as_list(entries), 1):
        source = Source(
            reader.name(path),
            f'point {number}',
            json.dumps(entry, ensure_ascii=False),
        )
        source = said_in_log(source, entry)
        figures = numbers(entry.get('metrics'))
        if figures:
            points.append(
                SweepPoint(
                    routing=router(entry.get('routing', '')),
                    price=number_or_none(entry.get('price')),
                    ratio_asked=number_or_none(entry.get('ratio_asked')),
                    ratio_calibrated=number_or_none(
                        entry.get('ratio_calibrated')
                    ),
                    evaluation=Evaluation(figures, source),
                    seconds=quartiles(entry.get('seconds')),
                )
            )
    if not points:
        reader.complain(path, 'no sweep with points that have metrics')
        return None
    configs = sorted(path.parent.glob('*/vis_data/config.py'))
    first = points[0].evaluation.headlines
    return Sweep(
        name=reader.name(path.parent),
        config=str(content.get('config', '')),
        checkpoint=str(content.get('checkpoint', '')),
        date=reader.date(path),
        dataset=next(
            (dataset_of(config, 'test', reader) for config in configs), ''
        ),
        metric=str(content.get('metric') or (first or [''])[0]),
        points=points,
    )


def read_rows(path: Path, reader: Reader) -> list[StudyRow]:
    """Read the rows of a study, one JSON object per line.

    Args:
        path (Path): A ``*.jsonl``.
        reader (Reader): Remembers what cannot be read.
    """
    rows, strange = [], []
    for source, entry in reader.json_lines(path):
        value = number_or_none(entry.get('value'))
        if value is None or not {'setting', 'arm', 'metric'} <= entry.keys():
            strange.append(source.place.removeprefix('line '))
            continue
        source = said_in_log(source, entry)
        rows.append(
            StudyRow(
                path=source.path,
                date=str(entry.get('date') or reader.date(path)),
                setting=str(entry['setting']),
                arm=str(entry['arm']),
                phase=str(entry.get('phase') or ''),
                budget=number_or_none(entry.get('budget')),
                asked=number_or_none(entry.get('asked')),
                seed=words(entry.get('seed')),
                metric=str(entry['metric']),
                value=value,
                evaluation=Evaluation(numbers(entry.get('metrics')), source),
            )
        )
    if strange:
        reader.complain(
            path,
            f'no row of a study (setting, arm, metric, value) in line '
            f'{", ".join(strange)}',
        )
    return rows


def said_in_log(source: Source, entry: dict) -> Source:
    """The line of the log that an entry quotes, if it does."""
    line = entry.get('log')
    return source._replace(text=line) if isinstance(line, str) else source


def router(routing: Any) -> str:
    """The name of a router, whichever way a config says it."""
    if isinstance(routing, dict):
        routing = routing.get('type', '')
    return str(routing)


def as_list(entries: Any) -> list[dict]:
    """The objects of what should be a list of them."""
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict)]


def quartiles(entry: Any) -> tuple[float, float, float] | None:
    """Lower, median and upper time, if all are there."""
    found = numbers(entry)
    names = ('lower', 'median', 'upper')
    if not found.keys() >= set(names):
        return None
    return tuple(found[name] for name in names)


def number_or_none(value: Any) -> float | None:
    """A number of a JSON file, if it is one."""
    return value if isinstance(value, float) else None


def words(seed: Any) -> str:
    """A seed as it is written; in JSON it is a number."""
    if seed is None:
        return ''
    return f'{seed:g}' if isinstance(seed, float) else str(seed)
