"""Dynamic token routing's gate: is it worth computing?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.registry import MODELS
from mmdge.utils import UserError, is_number

from .granularity import pool
from .router import GumbelRouter


@MODELS.register_module()
class AveragedGate(GumbelRouter):
    """A :class:`GumbelRouter` that decides by averaged weights at test.

    Source: dynamic token routing (2308.03409), section 3.2. Each training
    step moves the average towards the weights, see :meth:`remember`; as long
    as there was none, the weights themselves count. They start at 0, so that
    decisions start as the bias says.

    Args:
        momentum (float): Of the average, in [0, 1). The paper doesn't tell
            its own. Defaults to 0.99.
        **kwargs: See :class:`GumbelRouter`.
    """

    def __init__(
        self, *args: Any, momentum: float = 0.99, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise UserError(
                f'momentum must be in [0, 1), but got {momentum!r}.'
            )
        self.momentum = momentum

    def reset_parameters(self) -> None:
        """See :class:`Router`; what was averaged is forgotten."""
        super().reset_parameters()
        nn.init.zeros_(self.gate.weight)
        self.register_buffer('average', self._weights.clone())
        updates = torch.zeros((), dtype=torch.long, device=self.average.device)
        self.register_buffer('num_updates', updates)

    @property
    def _weights(self) -> Tensor:
        """Weight and bias, ``(K, C + 1)``."""
        gate = self.gate
        return torch.cat([gate.weight, gate.bias[:, None]], 1).detach()

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`Router`."""
        if self.training:
            return super().logits(x, valid)
        known = torch.where(
            self.num_updates > 0, self.average, self._weights
        ).to(x.dtype)
        return F.linear(pool(x, self.cell), known[:, :-1], known[:, -1])

    def remember(self) -> None:
        """Move the average, once in a training step, whatever it decides.

        Else ranks, whose images differ, would come to different averages.
        """
        weights = self._weights
        moved = self.average.lerp(weights, 1 - self.momentum)
        moved = torch.where(self.num_updates > 0, moved, weights)
        self.average.copy_(moved)
        self.num_updates += 1
