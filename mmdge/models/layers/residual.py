"""Sums that need no memory of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def add(x: Tensor, update: Tensor, out: Tensor) -> Tensor:
    """``x + update``, in inference in the memory of ``out``.

    A large tensor is fresh memory from the system each time, which costs a
    CPU more than the sum does.

    Args:
        x (Tensor): Of any shape.
        update (Tensor): Of the shape of ``x``.
        out (Tensor): Of that shape, with values that nobody needs afterwards,
            maybe ``update`` itself. Not the output of a module, which a hook
            may have kept.

    Returns:
        Tensor: Of the same shape.
    """
    if torch.is_grad_enabled() or not x.dtype == update.dtype == out.dtype:
        return x + update
    return torch.add(x, update, out=out)
