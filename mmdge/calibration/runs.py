"""A backbone at several prices, to be timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mmdge.models.architectures import Backbone

from .price import set_price


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
