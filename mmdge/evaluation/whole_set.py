"""Metrics of the whole set, beside evaluators that measure in their own way.

mmdet's ``MultiDatasetsEvaluator`` takes one metric for each data set, and
passes over those beyond without a word; other evaluators may do anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric, Evaluator

from mmdge.registry import EVALUATOR
from mmdge.utils.checks import type_name

# They are of all images, and have no place of their own among others.
_OURS = ('BackboneFLOPs', 'RatioByContent')
_PLAIN = ('Evaluator', 'WholeSetEvaluator')


@EVALUATOR.register_module()
class WholeSetEvaluator(Evaluator):
    """An evaluator, and beside it metrics of all images.

    Args:
        metrics (dict | BaseMetric | Sequence): Of the whole set.
        evaluator (dict | Evaluator): Any other, which does what it does.
    """

    def __init__(
        self,
        metrics: dict | BaseMetric | Sequence,
        evaluator: dict | Evaluator,
    ) -> None:
        super().__init__(metrics)
        if not isinstance(evaluator, Evaluator):
            evaluator = EVALUATOR.build({'type': 'Evaluator', **evaluator})
        self.evaluator = evaluator

    @Evaluator.dataset_meta.setter
    def dataset_meta(self, dataset_meta: Any) -> None:
        """Set the meta information of both."""
        Evaluator.dataset_meta.fset(self, dataset_meta)
        self.evaluator.dataset_meta = dataset_meta

    def process(self, data_samples: Sequence, data_batch: Any = None) -> None:
        """Hand a batch to both."""
        self.evaluator.process(data_samples, data_batch)
        super().process(data_samples, data_batch)

    def evaluate(self, size: int) -> dict:
        """What both have found in ``size`` images."""
        return {**self.evaluator.evaluate(size), **super().evaluate(size)}


def with_metrics(
    evaluator: dict | Sequence | Evaluator | None,
    *metrics: dict | BaseMetric,
) -> dict | list | Evaluator | None:
    """Measure the whole set by further metrics, too, unless it is.

    Args:
        evaluator: A config's ``val_evaluator`` or ``test_evaluator``, which
            stays as it is, or a built one.
        *metrics: What to add; by default nothing, but mmdge's own metrics
            that a ``MultiDatasetsEvaluator`` would pass over are moved to
            where they are evaluated.

    Returns:
        The config with them, or the built evaluator, itself or in another;
        None if there was none.
    """
    if evaluator is None:
        return None
    flat = [m for each in _listed(evaluator) for m in _listed(each)]
    evaluator = next(filter(_is_evaluator, flat), None)
    if evaluator is None:
        return _joined(flat, metrics)
    # It may be among metrics, in whose registry it is not.
    metrics = [*(each for each in flat if each is not evaluator), *metrics]
    built = isinstance(evaluator, Evaluator)
    entries = vars(evaluator) if built else evaluator
    inside, outside = _listed(entries['metrics']), []
    if _name(evaluator, 'Evaluator') in _PLAIN:
        inside = _joined(inside, metrics)
    else:
        number = len(entries.get('dataset_prefixes', inside))
        beyond = inside[number:]
        inside = inside[:number] + [m for m in beyond if not _is_ours(m)]
        outside = _joined([m for m in beyond if _is_ours(m)], metrics)
    if built:
        evaluator.metrics = Evaluator(inside).metrics  # builds configs
        return WholeSetEvaluator(outside, evaluator) if outside else evaluator
    evaluator = dict(evaluator, metrics=inside)
    if not outside:
        return evaluator
    kind = 'mmdge.WholeSetEvaluator'
    return dict(type=kind, metrics=outside, evaluator=evaluator)


def with_flops(
    evaluator: dict | Sequence | Evaluator | None,
) -> dict | list | Evaluator | None:
    """Measure the backbone's FLOPs, too; see :func:`with_metrics`."""
    flops = dict(type='mmdge.BackboneFLOPs', required=False)
    return with_metrics(evaluator, flops)


def _listed(entry: Any) -> list:
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def _joined(metrics: list, others: Sequence) -> list:
    """Metrics and others, of mmdge's own one of a kind."""
    joined = list(metrics)
    for metric in others:
        if not _is_ours(metric) or _name(metric) not in map(_name, joined):
            joined.append(metric)
    return joined


def _is_evaluator(entry: Any) -> bool:
    """As MMEngine's runner tells them from metrics."""
    return isinstance(entry, Evaluator) or (
        isinstance(entry, Mapping) and 'metrics' in entry
    )


def _is_ours(metric: Any) -> bool:
    return _name(metric) in _OURS


def _name(entry: Any, default: str = 'None') -> str:
    if isinstance(entry, Mapping):
        return type_name(entry, default)
    return type(entry).__name__
