"""Learned position embeddings for any input size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_pos_embed(
    pos_embed: Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    mode: str = 'bilinear',
) -> Tensor:
    """Resize a position embedding, corners free.

    Args:
        pos_embed (Tensor): ``(1, h * w, C)``, without extra tokens.
        source (tuple[int, int]): Its height and width, ``(h, w)``.
        target (tuple[int, int]): The height and width wanted, ``(H, W)``.
        mode (str): Of :func:`torch.nn.functional.interpolate`. Defaults to
            ``'bilinear'``, as PVT does; DeiT uses ``'bicubic'``.

    Returns:
        Tensor: ``(1, H * W, C)``; the input itself if the sizes agree.
    """
    if tuple(source) == tuple(target):
        return pos_embed
    # (1, h * w, C) -> (1, C, h, w)
    grid = pos_embed.unflatten(1, source).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=target, mode=mode, align_corners=False)
    return grid.flatten(2).transpose(1, 2)
