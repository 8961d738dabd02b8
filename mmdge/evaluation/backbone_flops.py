"""True FLOPs of the backbone, next to the task's metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmdge.registry import METRICS


@METRICS.register_module()
class BackboneFLOPs(BaseMetric):
    """Distribution of the backbone's FLOPs over the images evaluated.

    As a metric, and not a hook, it stands in the same log line and JSON as
    ``coco/bbox_mAP`` or ``mIoU``, is collected per image from all ranks and
    covers the whole set. It needs :class:`mmdge.CostHook`, which also adds
    it where it is missing. What an image costs is the sum of all forwards of
    the backbone for it: its sliding windows, its views in an augmented test.

    Unit: 1 GFLOPs = 1e9 multiply-adds; convolutions, linear layers and both
    attention products, routers included. Keys: ``backbone/GFLOPs`` (mean),
    ``backbone/GFLOPs_dense`` (the plain backbone on the same images),
    ``backbone/FLOPs_ratio`` (mean of the images' ratios), for the first and
    the last also ``_std``, ``_p5`` and ``_p95``; ``backbone/region_spread``,
    see :attr:`Cost.region_spread`: 0 means a router that gives every region
    the same answer.

    Args:
        required (bool): Raise if a sample has no cost, as one that a
            ``tta_model`` of its own has made. Defaults to True; what CostHook
            adds passes over them.
        **kwargs: Those of :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'backbone'

    def __init__(self, required: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.required = required

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Read the cost that CostHook wrote into each sample."""
        for sample in data_samples:
            if not self.required and 'backbone_cost' not in sample:
                continue
            cost = cost_of(sample, type(self).__name__)
            self.results.append(
                (cost['dynamic'], cost['dense'], cost['region_spread'])
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Summarise the images of all ranks."""
        if not results:
            if not self.required:
                return {}
            raise ValueError('BackboneFLOPs saw no image: is the set empty?')
        dynamic, dense, spread = np.array(results, dtype=np.float64).T
        return {
            **_distribution('GFLOPs', dynamic / 1e9),
            'GFLOPs_dense': float(dense.mean() / 1e9),
            **_distribution('FLOPs_ratio', dynamic / dense),
            'region_spread': float(spread.mean()),
        }


def cost_of(sample: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Return what CostHook wrote into a sample.

    Args:
        sample (dict): A data sample, as metrics get it.
        who (str): Who asks, for the error message.

    Raises:
        ValueError: If it wrote nothing.
    """
    if 'backbone_cost' not in sample:
        raise ValueError(
            f'{who} found a sample without backbone_cost; add '
            "cost=dict(type='mmdge.CostHook', budget=...) to default_hooks, "
            'or leave the metric out if a tta_model of your own makes new '
            'samples.'
        )
    return sample['backbone_cost']


def _distribution(name: str, values: np.ndarray) -> dict[str, float]:
    p5, p95 = np.percentile(values, [5, 95])
    return {
        name: float(values.mean()),
        f'{name}_std': float(values.std()),
        f'{name}_p5': float(p5),
        f'{name}_p95': float(p95),
    }
