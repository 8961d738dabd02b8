"""Train one checkpoint for many budgets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook

from mmdge.registry import HOOKS
from mmdge.utils import UserError, is_number

from .cost_hook import find_dynamic_backbones


@HOOKS.register_module()
class RandomPriceHook(Hook):
    """Draw the price of each training step.

    A model that is trained at one budget only does worse at others. With the
    prices of several, the same weights serve all of them. Evaluation takes no
    notice: there the price is the model's own. ``make_dynamic.py --also``
    finds the prices and adds the hook.

    Args:
        prices (Sequence[float]): Drawn from evenly, by the seed and the
            iteration alone: the same in all processes, resumed or not. 0 is
            the budget that the routers have been made for.
    """

    def __init__(self, prices: Sequence[float]) -> None:
        if (
            not isinstance(prices, Sequence)
            or not prices
            or not all(is_number(price) for price in prices)
        ):
            raise UserError(
                'prices must be a sequence of numbers, at least one, but got '
                f'{prices!r}.'
            )
        self.prices = list(prices)

    def before_train(self, runner: Any) -> None:
        """Find the backbones.

        Raises:
            UserError: If there is none, or no price moves any in training.
        """
        name = type(self).__name__
        self._backbones = find_dynamic_backbones(runner.model, name)
        routers = [r for b in self._backbones for r in b.routers]
        if not any(router.priced for router in routers):
            kinds = ', '.join(type(b).__name__ for b in self._backbones)
            raise UserError(
                f'{name} does nothing here, since no price moves what {kinds} '
                'spends in training; do without it.'
            )

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Draw a price, the same for the whole network."""
        draw = random.Random(f'{runner.seed} {runner.iter}')
        price = draw.choice(self.prices)
        self._set(price)

    def after_train(self, runner: Any) -> None:
        """Leave the routers as they were."""
        self._set(0.0)

    def _set(self, price: float) -> None:
        for backbone in self._backbones:
            for router in backbone.routers:
                router.train_price = price
