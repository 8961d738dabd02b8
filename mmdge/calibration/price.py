"""The price that meets a budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmdge.models.architectures import Backbone
from mmdge.utils import UserError

from .errors import check_routed

_FURTHEST = 2.0**12
_BATCH = 8
_FAR = 0.02  # of a ratio, from what was asked


def set_price(backbone: Backbone, price: float) -> None:
    """Set the price of all routers, see :class:`Router`."""
    for router in backbone.routers:
        router.price = price


def fold_price(backbone: Backbone, price: float) -> None:
    """Make a price part of calibrated routers, for which it is 0 from then."""
    set_price(backbone, price)
    for router in backbone.routers:
        router.absorb_price()


def runs_at_prices(
    backbone: Backbone,
    prices: Sequence[float],
    images: Sequence[Tensor],
) -> list[Callable[[], None]]:
    """Make a run of all images at each price, and one of the dense twin.

    Args:
        backbone (Backbone): In evaluation mode; a run leaves it at its
            price.
        prices (Sequence[float]): See :class:`Router`.
        images (Sequence[Tensor]): Batches ``(B, 3, H, W)``, preprocessed.

    Returns:
        list[Callable]: One run for each price; the dense twin's is the last.
    """

    @torch.no_grad()
    def run() -> None:
        for batch in images:
            backbone(batch)

    def routed(price: float) -> None:
        set_price(backbone, price)
        run()

    def dense() -> None:
        with backbone.as_dense_twin():
            run()

    return [*(partial(routed, price) for price in prices), dense]


def ratio_at_price(
    backbone: Backbone, images: Sequence[Tensor]
) -> Callable[[float], float]:
    """Make the function that :func:`find_price` asks.

    Args:
        backbone (Backbone): In evaluation mode; its price is changed.
        images (Sequence[Tensor]): Batches ``(B, 3, H, W)``, preprocessed.

    Returns:
        Callable: Dynamic over dense FLOPs at a price, averaged over the
        images; asked twice, it answers what it did before.

    Raises:
        UserError: If no block routes.
    """
    check_routed(backbone)
    batches = _in_batches(images)

    @cache
    @torch.no_grad()
    def ratio_at(price: float) -> float:
        set_price(backbone, price)
        ratios = [backbone.ratios(batch) for batch in batches]
        return torch.cat(ratios).mean().item()

    return ratio_at


def _in_batches(images: Sequence[Tensor]) -> list[Tensor]:
    """Put neighbours of the same size together, which is faster."""
    batches = []
    for _, alike in groupby(images, key=lambda image: image.shape[1:]):
        batches += torch.cat(list(alike)).split(_BATCH)
    return batches


def find_price(
    ratio_at: Callable[[float], float],
    ratio: float,
    tolerance: float = 0.002,
    max_steps: int = 40,
) -> tuple[float, float]:
    """Find the price at which a ratio is spent.

    The higher the price, the lower the ratio. It falls in steps, so that
    not every ratio can be met exactly.

    Args:
        ratio_at (Callable): Ratio at a price.
        ratio (float): Wanted.
        tolerance (float): How close is close enough. Defaults to 0.002.
        max_steps (int): Most calls of ``ratio_at``. Defaults to 40.

    Returns:
        tuple[float, float]: The price, of those tried, whose ratio is the
        closest; and that ratio.

    Raises:
        UserError: If no price spends so much, or so little.
    """
    misses = {0.0: ratio_at(0.0) - ratio}

    def best() -> tuple[float, float]:
        return min(misses.items(), key=lambda pair: abs(pair[1]))

    # Walk away from 0 until the ratio lies in between.
    step = math.copysign(0.25, misses[0.0])
    last = price = 0.0
    while (
        abs(misses[price]) > tolerance
        and misses[price] * step > 0
        and len(misses) < max_steps
    ):
        if abs(step) > _FURTHEST:
            spent = ratio + misses[price]
            raise UserError(
                f'ratio={ratio} cannot be met: the backbone spends '
                f'{spent:.3f} even at a price of {price:g}.'
            )
        last, price = price, step
        misses[price] = ratio_at(price) - ratio
        step *= 2
    low, high = sorted((last, price))
    moved = []  # which end, each time
    while (
        abs(best()[1]) > tolerance
        and len(misses) < max_steps
        and high - low > 1e-6 * max(1.0, abs(low))
    ):
        # As if the ratio fell in a line; halved where that creeps.
        part = misses[low] / (misses[low] - misses[high])
        if len(set(moved[-2:])) == 1 < len(moved):
            part = 0.5
        price = low + min(max(part, 0.1), 0.9) * (high - low)
        misses[price] = ratio_at(price) - ratio
        moved.append(misses[price] > 0)
        low, high = (price, high) if misses[price] > 0 else (low, price)
    price, miss = best()
    return price, ratio + miss


def warn_if_far(ratio: float, spent: float) -> None:
    """Say so if the price that was found doesn't spend what was asked.

    Args:
        ratio (float): Wanted.
        spent (float): By the closest price there is.
    """
    if abs(spent - ratio) > _FAR:
        print_log(
            f'asked for ratio={ratio:g}, the closest that a price gives on '
            f'these images is {spent:.3f}: many regions change at once',
            logger='current',
            level=logging.WARNING,
        )
