"""What a report is about, whichever files it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# Of those that a host reports, what one would quote.
_HEADLINE = re.compile(r'(^|[/_])(mAP|mIoU|top1)$')
_NOT_OF_THE_TASK = ('data_time', 'time', 'step', 'epoch', 'iter')


class Source(NamedTuple):
    """Where a number stands.

    Attributes:
        path (str): Of the file, from the folder above those given.
        place (str): In the file, e.g. ``'line 12'``.
        text (str): What stands there.
    """

    path: str
    place: str
    text: str


class Evaluation(NamedTuple):
    """What one evaluation of a model found.

    Attributes:
        metrics (dict): Name to value, as in MMEngine's log.
        source (Source): Where that stands.
        iteration (float, optional): Last one logged before it, if a training
            evaluated.
    """

    metrics: Mapping[str, float]
    source: Source
    iteration: float | None = None

    def backbone(self, name: str) -> float | None:
        """A figure of BackboneFLOPs, e.g. ``'GFLOPs_p95'``."""
        return self.metrics.get(f'backbone/{name}')

    @property
    def headlines(self) -> list[str]:
        """Names of the metrics to quote: the task's mAP, mIoU or top-1."""
        task = [
            name
            for name in self.metrics
            if not name.startswith(('backbone/', 'content/'))
            and name not in _NOT_OF_THE_TASK
        ]
        return [name for name in task if _HEADLINE.search(name)] or task[:1]


class Picture(NamedTuple):
    """A granularity map.

    Attributes:
        step (int): Iteration of the training, or 0; -1 if unknown.
        name (str): Its path, from the folder above those given.
        path (Path): The file.
    """

    step: int
    name: str
    path: Path


@dataclass
class Run:
    """A training or a test: a time-stamped folder of MMEngine's.

    Attributes:
        name (str): Its work dir, from the folder above those given.
        config (str): Stem of the config file; may be empty.
        kind (str): ``'training'`` or ``'test'``.
        date (str): When it began.
        dataset (str): ``data_root`` of what it evaluates on; may be empty.
        training (list[dict]): What was logged, iteration by iteration.
        evaluations (list[Evaluation]): In their order.
        pictures (list[Picture]): The newest last.
    """

    name: str
    config: str
    kind: str
    date: str
    dataset: str
    training: list[dict[str, float]]
    evaluations: list[Evaluation]
    pictures: list[Picture]


class SweepPoint(NamedTuple):
    """One budget of a sweep.

    Attributes:
        routing (str): The router.
        price (float, optional): See :class:`mmdge.models.routing.Router`.
        ratio_asked (float, optional): Budget.
        ratio_calibrated (float, optional): Ratio on the calibration images.
        evaluation (Evaluation): What was found.
        seconds (tuple, optional): Lower, median and upper time.
    """

    routing: str
    price: float | None
    ratio_asked: float | None
    ratio_calibrated: float | None
    evaluation: Evaluation
    seconds: tuple[float, float, float] | None


@dataclass
class Sweep:
    """One checkpoint at many budgets.

    Attributes:
        name (str): Its folder, from the folder above those given.
        config (str): Path of the config file.
        checkpoint (str): Path of the weights.
        date (str): When it was written.
        dataset (str): ``data_root`` of its test set; may be empty.
        metric (str): Name of the task's metric.
        points (list[SweepPoint]): In their order.
    """

    name: str
    config: str
    checkpoint: str
    date: str
    dataset: str
    metric: str
    points: list[SweepPoint]


class StudyRow(NamedTuple):
    """One seed of one arm of a study.

    Attributes:
        path (str): The file, from the folder above those given.
        date (str): Of the row, else of the file.
        setting (str): Data and task.
        arm (str): What is compared.
        phase (str): What was trained.
        budget (float, optional): Ratio that it was trained for.
        asked (float, optional): Ratio that its price was calibrated for.
        seed (str): Of the training.
        metric (str): Name of the task's metric.
        value (float): Of that metric.
        evaluation (Evaluation): All that was found.
    """

    path: str
    date: str
    setting: str
    arm: str
    phase: str
    budget: float | None
    asked: float | None
    seed: str
    metric: str
    value: float
    evaluation: Evaluation


@dataclass
class Collection:
    """All that was found.

    Attributes:
        runs (list[Run]): Trainings and tests.
        sweeps (list[Sweep]): Checkpoints at many budgets.
        rows (list[StudyRow]): Of all studies.
        problems (list[str]): What could not be read, a sentence each.
    """

    runs: list[Run] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    rows: list[StudyRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
