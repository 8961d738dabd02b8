"""Routers by error: what would a coarser granularity get wrong?

A block's update at a coarser granularity differs from that at the finest; the
more the tokens inside the region vary, the more. How the squared difference
grows with the variance is fitted, block by block, to a few images without
labels (:mod:`mmdge.calibration`). Divided by what the region's queries cost,
it is comparable all over the network: one price decides everywhere, and how
much a block spends follows by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdge.registry import MODELS

from .granularity import region_variance
from .router import Decision, Router

_ALMOST_FREE = 1e-6
LEAST = 1e-8  # of variances and errors, where their logarithm is taken


@MODELS.register_module()
class ErrorRouter(Router):
    """Buy queries where the error that they spare is worth their FLOPs.

    ``logit_k = -weight * scale_k * variance ** exponent_k - cost_k``: the
    error is weighed in units in which the FLOPs of the region's finest
    queries cost 1. So the price that was calibrated is part of the router,
    in training too, and ``price`` comes on top of it: 0 leaves the budget as
    it is, 1 doubles the price, -1 makes everything free and finest.

    Without calibration, the tokens of a region are taken to be independent,
    and their variance to be the error.

    Arguments are those of :class:`Router`.

    Attributes:
        weight (Tensor): ``()``, at least 0.
        scale (Tensor): Error of each candidate where the variance is 1,
            ``(K,)``; 0 for the finest.
        exponent (Tensor): ``(K,)``.
    """

    records_sides = True

    def __init__(
        self, embed_dims: int, cost: Sequence[float], cell: int, **kwargs: Any
    ) -> None:
        super().__init__(embed_dims, cost, cell, **kwargs)
        for name, value in self._uncalibrated().items():
            self.register_buffer(name, value)

    @property
    def tokens_per_row(self) -> float:
        """Of the finest candidate; a row of the coarsest is the whole cell."""
        return float(self.cell**2 * self.cost[-1])

    def _uncalibrated(self) -> dict[str, Tensor]:
        # The mean of n independent values has 1 / n of their variance.
        one_by_n = self.cost / self.tokens_per_row
        return dict(
            weight=torch.tensor(1.0),
            scale=one_by_n[0] - one_by_n,
            exponent=torch.ones_like(self.cost),
        )

    def reset_parameters(self) -> None:
        """Forget the calibration."""
        for name, value in self._uncalibrated().items():
            getattr(self, name).copy_(value)

    def predict(self, x: Tensor) -> Tensor:
        """What each candidate would get wrong.

        Args:
            x (Tensor): Token map ``(B, H, W, C)``.

        Returns:
            Tensor: Mean squared difference to the finest candidate's update,
            as of :meth:`Grains.errors`, ``(B, Rh, Rw, K)``.
        """
        variance = region_variance(x.detach(), self.cell).clamp(min=LEAST)
        return self.scale * variance[..., None] ** self.exponent

    def weigh(self, errors: Tensor, valid: Tensor) -> Tensor:
        """Logits for errors; padding, which has none, is coarsest."""
        logits = -self.weight * errors - self.progress * self.cost
        return self.without_padding(logits, valid)

    def absorb_price(self) -> None:
        """See :class:`Router`; its own price is 1, and almost free at least.

        Weights are divided by it.
        """
        self.weight /= max(1 + self.price, _ALMOST_FREE)
        self.price = 0.0

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`Router`."""
        return self.weigh(self.predict(x), valid)


@MODELS.register_module()
class ShuffledRouter(ErrorRouter):
    """Control: the same amount in each block of each image, but anywhere.

    The predicted errors change places within the image, so that what is
    gained by *where* stands apart from *how much*.
    """

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`Router`."""
        errors = self.predict(x)
        flat, inside = errors.flatten(1, 2), valid.flatten(1)  # (B, R, ...)
        # In both orders the padding, which stays where it is, comes last.
        drawn = torch.rand(inside.shape, device=x.device)
        shuffled = drawn.where(inside, 2.0).argsort(1)
        regular = (~inside).byte().argsort(dim=1, stable=True)
        places = torch.empty_like(shuffled).scatter(1, regular, shuffled)
        flat = flat.gather(1, places[..., None].expand_as(flat))
        return self.weigh(flat.view_as(errors), valid)


@MODELS.register_module()
class OracleRouter(ErrorRouter):
    """Control: the same with the true errors in place of the predicted.

    It computes every candidate to know, so it saves nothing; its FLOPs are
    those of what it chose.
    """

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        errors: Callable[[], Tensor] | None = None,
    ) -> Decision | None:
        """See :class:`Router`; here ``errors`` must be given."""
        truth = errors()
        if valid is None:
            valid = torch.ones_like(truth[..., 0], dtype=torch.bool)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.weigh(truth.float(), valid)
            return self.decide(logits, valid, x.shape[1:3])
