"""From what was seen of the blocks to the settings of their routers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdge.models.backbones import DynamicBackbone

from .errors import BlockErrors, routed_blocks

_LEAST = 1e-8  # of variances and errors, before their logarithm


def fit_power_law(variance: Tensor, error: Tensor) -> tuple[float, float]:
    """Fit ``error = scale * variance ** exponent``.

    A line through the logarithms, moved so that the mean error is met.

    Args:
        variance (Tensor): ``(R,)``, not negative.
        error (Tensor): ``(R,)``, not negative.

    Returns:
        tuple[float, float]: Scale and exponent, neither negative.
    """
    variance = variance.double().clamp(min=_LEAST)
    x = variance.log()
    y = error.double().clamp(min=_LEAST).log()
    centred = x - x.mean()
    spread = centred.square().sum()
    slope = (centred * (y - y.mean())).sum() / spread.clamp(min=_LEAST)
    exponent = slope.clamp(min=0)
    scale = error.double().sum() / (variance**exponent).sum()
    return scale.item(), exponent.item()


@torch.no_grad()
def set_routers(
    backbone: DynamicBackbone, seen: Sequence[BlockErrors]
) -> None:
    """Calibrate the ErrorRouters of a backbone, but for the price.

    Weights are such that an average error of the network weighs 1.

    Args:
        backbone (DynamicBackbone): With ``routing='error'``.
        seen (Sequence[BlockErrors]): Of its routed blocks.
    """
    # A region's cost is in units of its finest queries, which are tokens or
    # patches of several.
    blocks = routed_blocks(backbone)
    worth = [
        block.granularities[0] ** 2 / entry.flops
        for block, entry in zip(blocks, seen, strict=True)
    ]
    total = sum(
        part * entry.errors[:, -1].mean().item()
        for part, entry in zip(worth, seen, strict=True)
    )
    average = total / len(seen) or 1.0  # or nothing is ever wrong
    for block, entry, part in zip(blocks, seen, worth, strict=True):
        router = block.router
        router.weight.fill_(part / average)
        for k in range(1, len(router.granularities)):
            router.scale[k], router.exponent[k] = fit_power_law(
                entry.variance, entry.errors[:, k]
            )
