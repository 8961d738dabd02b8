"""Sums that need no memory of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def add(x: Tensor, update: Tensor) -> Tensor:
    """``x + update``, in inference in the memory of ``update``.

    A large tensor is fresh memory from the system each time, which costs a
    CPU more than the sum does.

    Args:
        x (Tensor): Of a shape that broadcasts to that of ``update``.
        update (Tensor): What nobody needs afterwards. Not the output of a
            module, which a hook may have kept.

    Returns:
        Tensor: Of the shape of ``update``.
    """
    if torch.is_grad_enabled() or x.dtype != update.dtype:
        return x + update
    return update.add_(x)
