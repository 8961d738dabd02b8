"""Where a score stands among others, as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..exporting import exporting

# A rank of exactly 1 would sit on the threshold of a share of 0.
BELOW_ONE = 1 - 1e-6


def summarise(scores: Tensor, num: int) -> Tensor:
    """Represent scores by ``num`` of them, each standing for as many.

    Summaries of several batches, put together, are distributed as the
    batches put together; their quantiles, averaged, would not be. What isn't
    finite is left out.

    Returns:
        Tensor: The quantiles at the middles of ``num`` even steps, ``(num,)``,
        ascending; NaN if no score is finite.
    """
    finite = scores.where(scores.isfinite(), scores.new_tensor(math.nan))
    levels = (torch.arange(num, device=scores.device) + 0.5) / num
    return torch.nanquantile(finite.flatten(), levels.to(scores.dtype))


def rank_among_quantiles(scores: Tensor, quantiles: Tensor) -> Tensor:
    """Place of each score in a distribution, interpolated.

    Args:
        scores (Tensor): Any shape.
        quantiles (Tensor): Ascending, evenly spaced from the minimum to the
            maximum, ``(Q,)``, of the scores' type.

    Returns:
        Tensor: In [0, 1), differentiable with respect to the scores.
    """
    last = len(quantiles) - 1
    if exporting():  # ONNX has no search
        upper = (scores.detach()[..., None] > quantiles).sum(-1)
    else:
        upper = torch.searchsorted(quantiles, scores.detach().contiguous())
    upper = upper.clamp(1, last)
    low, high = quantiles[upper - 1], quantiles[upper]
    # Between nearly equal quantiles the slope would have no bound.
    least = (quantiles[-1] - quantiles[0]) * (0.01 / last) + 1e-12
    step = (scores - low) / torch.maximum(high - low, least)
    ranks = (upper - 1 + step.clamp(0, 1)) / last
    return ranks.nan_to_num(BELOW_ONE).clamp(max=BELOW_ONE)


def rank_within_image(scores: Tensor, valid: Tensor) -> Tensor:
    """Place of each cell among those of its image.

    Args:
        scores (Tensor): ``(B, Rh, Rw)``.
        valid (Tensor): Cells that count, of the same shape, bool; the
            rank of the others is 0.

    Returns:
        Tensor: ``(B, Rh, Rw)``; of an image's n regions that count, the
        middles of n even steps in [0, 1).
    """
    valid = valid.flatten(1)
    flat = scores.flatten(1).masked_fill(~valid, -math.inf)
    num = valid.sum(1, keepdim=True)
    ranks = (places(flat) - (flat.shape[1] - num) + 0.5) / num
    return ranks.clamp(min=0).view_as(scores)


def places(scores: Tensor) -> Tensor:
    """Place of each of ``(B, N)`` in its row, 0 for the lowest, ``(B, N)``."""
    found = order(scores, scores.shape[1])
    places = torch.arange(scores.shape[1], device=scores.device)
    return torch.empty_like(found).scatter_(1, found, places.expand_as(found))


def order(scores: Tensor, num: int, descending: bool = False) -> Tensor:
    """Where the lowest, or highest, ``num`` of ``(B, N)`` stand, in order.

    Of equals the first comes first.
    """
    if exporting():  # so it is with ONNX's
        return scores.topk(num, dim=1, largest=descending).indices
    return scores.argsort(dim=1, descending=descending, stable=True)[:, :num]
