"""Dense at first, then the shares."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from mmdge.registry import HOOKS
from mmdge.utils import UserError

from .cost_hook import find_dynamic_backbones


@HOOKS.register_module()
class RoutingWarmupHook(Hook):
    """Train dense, then move linearly to the routers' shares.

    Evaluation always shows the model at the routers' own shares. The paper's
    router learns its amount and takes no notice.

    Args:
        begin (float): Part of the training, in [0, 1], that is dense.
            Defaults to 0.3.
        end (float): Part after which the shares are reached, not before
            ``begin``. Defaults to 0.6.
    """

    def __init__(self, begin: float = 0.3, end: float = 0.6) -> None:
        if not 0 <= begin <= end <= 1:
            raise UserError(
                'begin and end must satisfy 0 <= begin <= end <= 1, but got '
                f'begin={begin}, end={end}.'
            )
        self.begin = begin
        self.end = end

    def progress(self, part: float) -> float:
        """Progress of the routers after ``part`` of the training."""
        if part >= self.end:
            return 1.0
        if part <= self.begin:  # which may be `end`, an abrupt switch
            return 0.0
        return (part - self.begin) / (self.end - self.begin)

    def before_train(self, runner: Any) -> None:
        """Find the backbones, or say that there is none."""
        self._backbones = find_dynamic_backbones(
            runner.model, type(self).__name__
        )

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Set the progress of this iteration, resumed or not."""
        progress = self.progress(runner.iter / runner.max_iters)
        for backbone in self._backbones:
            backbone.anneal(progress)
