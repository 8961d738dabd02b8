"""Read MMEngine's work dirs."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from .reading import Reader, numbers, parse
from .records import Evaluation, Picture, Run, Source

STAMP = re.compile(r'\d{8}_\d{6}')
# The line that ends an evaluation; those on the way tell the time left.
_EVALUATED = re.compile(r'(?:Epoch|Iter)\((val|test)\) (?!.* eta: )')
_FIGURE = re.compile(r'(\S+): (-?\d\S*|nan|-?inf)(?=  |$)')


def read_run(folder: Path, reader: Reader) -> Run | None:
    """Read the time-stamped folder of a run.

    Args:
        folder (Path): ``<work_dir>/<timestamp>``.
        reader (Reader): Remembers what cannot be read.

    Returns:
        Run, optional: None if the folder is of something else, or holds
        neither a training nor an evaluation.
    """
    log = folder / f'{folder.name}.log'
    scalars = folder / 'vis_data' / 'scalars.json'
    tested = folder / f'{folder.name}.json'
    if not any(path.is_file() for path in (log, scalars, tested)):
        return None
    text = reader.text(log)
    said = logged(reader.name(log), text)
    training, validations = [], []
    for source, entry in reader.json_lines(scalars):
        figures = numbers(entry)
        if 'iter' in figures:
            training.append(figures)
        elif figures:
            last = training[-1]['iter'] if training else None
            validations.append(Evaluation(figures, source, last))
    evaluations = [
        *quoted(validations, said['val']),
        # Each test writes the file anew.
        *quoted(tests(tested, reader), said['test'][-1:]),
    ]
    if not training and not evaluations:
        reader.complain(folder, 'a run without any figure')
        return None
    try:
        moment = datetime.strptime(folder.name, '%Y%m%d_%H%M%S')
        date = f'{moment:%Y-%m-%d %H:%M}'
    except ValueError:  # looks like a date and is none
        date = folder.name
    split = 'val' if training else 'test'
    return Run(
        name=reader.name(folder.parent),
        config=config_of(folder, text),
        kind='training' if training else 'test',
        date=date,
        dataset=dataset_of(folder / 'vis_data' / 'config.py', split, reader),
        training=training,
        evaluations=evaluations,
        pictures=sorted(
            Picture(step_of(path), reader.name(path), path)
            for path in folder.glob('vis_data/*/granularity*.png')
        ),
    )


def logged(path: str, text: str) -> Mapping[str, list[Source]]:
    """The lines of a log that end a validation or a test."""
    said = {'val': [], 'test': []}
    for number, line in enumerate(text.split('\n'), 1):
        found = _EVALUATED.search(line)
        if found:
            said[found[1]].append(Source(path, f'line {number}', line))
    return said


def tests(path: Path, reader: Reader) -> list[Evaluation]:
    """What ``tools/test.py`` left beside its log."""
    text = reader.text(path).strip()
    figures = numbers(parse(text))
    if text and not figures:
        reader.complain(path, 'no JSON object with figures')
    source = Source(reader.name(path), 'all of it', text)
    return [Evaluation(figures, source)] if figures else []


def quoted(found: list[Evaluation], said: list[Source]) -> list[Evaluation]:
    """Evaluations with the lines of the log that say them.

    The JSON has all digits, and lacks none that the log has unless a run was
    killed in between; without JSON the log has to do.
    """
    if len(found) == len(said):
        return [
            entry._replace(source=source)
            for entry, source in zip(found, said, strict=True)
        ]
    if found:
        return found
    return [
        Evaluation(
            {key: float(value) for key, value in _FIGURE.findall(source.text)},
            source,
        )
        for source in said
    ]


def config_of(folder: Path, log: str) -> str:
    """Stem of a run's config, which MMEngine copies into the work dir."""
    configs = list(folder.parent.glob('*.py'))
    if len(configs) == 1:
        return configs[0].stem
    # Several configs shared the work dir.
    name = re.search(rf'Exp name: (.+)_{STAMP.pattern}$', log, re.MULTILINE)
    return name[1] if name else ''


def dataset_of(path: Path, split: str, reader: Reader) -> str:
    """``data_root`` of a dumped config, which is not run."""
    try:
        tree = ast.parse(reader.text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        reader.complain(path, 'no config that can be parsed')
        return ''
    for statement in tree.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == f'{split}_dataloader'
        ):
            for node in ast.walk(statement):
                if (
                    isinstance(node, ast.keyword)
                    and node.arg == 'data_root'
                    and isinstance(node.value, ast.Constant)
                ):
                    return str(node.value.value).rstrip('/')
    return ''


def step_of(picture: Path) -> int:
    """The iteration that a picture's name ends with, or -1."""
    found = re.search(r'_(\d{1,12})$', picture.stem)
    return int(found[1]) if found else -1
