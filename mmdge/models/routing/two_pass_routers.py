"""Routers that decide by what a first pass saw, see CF-ViT."""

from __future__ import annotations

import torch
from torch import Tensor

from .router import Router


class AttentionRouter(Router):
    """Ranks regions by the attention that they got; how many is given."""

    adaptive = priced = False

    def ranks(self, x: Tensor, valid: Tensor) -> Tensor:
        """Rank ``(B, Rh, Rw)`` of each region; the highest is split first.

        Args:
            x (Tensor): The attention to each, ``(B, Rh, Rw, 1)``.
            valid (Tensor): Regions that are no padding, ``(B, Rh, Rw)``.
        """
        return x.squeeze(-1)


class ConfidenceRouter(Router):
    """Whether an image, the cell, goes on (cost 1), or stops (cost 0).

    Source: CF-ViT (Chen et al., AAAI 2023), section 3.4: an image goes on if
    its confidence, its largest probability, is at most ``eta = 1 - price``.
    In training, and at a price of 0, all go on.
    """

    @property
    def adaptive(self) -> bool:
        """See :class:`Router`."""
        return not self.training and self.price > 0

    @property
    def priced(self) -> bool:
        """See :class:`Router`."""
        return not self.training

    def logits(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits ``(B, 2)`` of an image's classes' ``(B, K)``."""
        doubt = 1 - x.softmax(-1).amax(-1)
        return torch.stack([doubt, torch.zeros_like(doubt)], -1)

    def goes(self, x: Tensor) -> Tensor:
        """Which images go on, ``(B,)``, bool, by logits ``(B, K)``."""
        exact = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x.detach().to(exact))
            return self.decide(logits).choice == 0
