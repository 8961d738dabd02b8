"""Routing by effect: what would a cheaper candidate change in the end?

How far the model's outputs move where a cell is computed in a cheaper way is
measured on a few images without labels (:mod:`mmdge.calibration`), and
predicted from what is known when the decision is made: by a linear function
of the mean and the standard deviation of the cell's tokens, fitted by ridge
regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdge.registry import MODELS

from ..cost import LinearCost
from .granularity import pool, unpool
from .router import Router


@MODELS.register_module()
class EffectRouter(Router):
    """Compute finely where the model's outputs would change else.

    ``logit_k = -effect_k - own_price * cost_k``. The price that was
    calibrated is part of the router, and ``price`` comes on top. Until it is
    calibrated, all is finest. Arguments are those of :class:`Router`.

    Attributes:
        weight (Tensor): Of the linear function, a row for each candidate but
            the finest, ``(K - 1, 2 * C)``.
        bias (Tensor): ``(K - 1,)``.
        own_price (Tensor): ``()``.
    """

    def __init__(
        self, embed_dims: int, cost: Sequence[float], cell: int, **kwargs: Any
    ) -> None:
        super().__init__(embed_dims, cost, cell, **kwargs)
        num = self.num_candidates - 1
        self.register_buffer('weight', torch.zeros(num, 2 * embed_dims))
        self.register_buffer('bias', torch.zeros(num))
        self.register_buffer('own_price', torch.tensor(0.0))
        self.register_load_state_dict_pre_hook(_forget_another)

    def reset_parameters(self) -> None:
        """Forget the calibration."""
        for buffer in (self.weight, self.bias, self.own_price):
            buffer.zero_()

    def features(self, x: Tensor) -> Tensor:
        """Mean and standard deviation of the tokens of each cell.

        Args:
            x (Tensor): Token map ``(B, H, W, C)``.

        Returns:
            Tensor: ``(B, Rh, Rw, 2 * C)``.
        """
        mean = pool(x, self.cell)
        centred = x - unpool(mean, self.cell, tuple(x.shape[1:3]))
        return torch.cat([mean, pool(centred.square(), self.cell).sqrt()], -1)

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`Router`; padding, which has no effect, is coarsest."""
        effect = F.linear(
            self.features(x.detach()),
            self.weight.to(x.dtype),
            self.bias.to(x.dtype),
        )
        effect = F.pad(effect, (1, 0))  # the finest has none
        logits = -effect - self.progress * self.own_price * self.cost
        return self.without_padding(logits, valid)

    def absorb_price(self) -> None:
        """See :class:`Router`."""
        self.own_price += self.price
        self.price = 0.0

    def flops(self) -> LinearCost:
        """See :class:`Router`."""
        return LinearCost(0, self.weight.numel())


def _forget_another(
    router: EffectRouter, state_dict: dict, prefix: str, *args: Any
) -> None:
    """Drop what a router of another method, of other features, knows."""
    weight = state_dict.get(f'{prefix}weight', router.weight)
    if weight.shape != router.weight.shape:
        for name, buffer in router.named_buffers():
            if f'{prefix}{name}' in state_dict:
                state_dict[f'{prefix}{name}'] = torch.zeros_like(buffer)
