"""Attention whose queries may be packed, keys and values from all tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import LinearCost
from .patch_embed import pad_to_patch


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int]
) -> Tensor:
    """Attention of packed queries to their own image's keys and values.

    Exact and without padding: images with equally many queries run as one
    batch, others one after the other.

    Args:
        q (Tensor): Packed queries, image-major, ``(sum_b L_b, C)``.
        k (Tensor): Keys, ``(B, num_heads, T, C / num_heads)``.
        v (Tensor): Values, like ``k``.
        lengths (list[int]): Number of queries of each image, ``L_b``.

    Returns:
        Tensor: ``(sum_b L_b, C)``.
    """
    num_heads, head_dim = k.shape[1], k.shape[3]
    if len(set(lengths)) == 1:
        # (B * L, C) -> (B, h, L, d)
        q = q.view(len(lengths), lengths[0], num_heads, head_dim)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v)
        return out.transpose(1, 2).reshape(-1, num_heads * head_dim)
    outs = []
    # (L_b, C) -> (1, h, L_b, d)
    q = q.view(-1, num_heads, head_dim).transpose(0, 1)[None]
    for i, q_i in enumerate(q.split(lengths, dim=2)):
        out = F.scaled_dot_product_attention(q_i, k[i : i + 1], v[i : i + 1])
        outs.append(out[0].transpose(0, 1).flatten(1))  # (L_b, C)
    return torch.cat(outs)


class SpatialReductionAttention(nn.Module):
    """Multi-head attention with PVT's reduction of the keys and values.

    Source: PVT (Wang et al., ICCV 2021), section 3.3; parameter names of the
    official code, so that its checkpoints fit. ``sr_ratio=1`` is plain
    attention.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads; must divide ``embed_dims``.
        sr_ratio (int): Side of the patch of tokens that becomes one key and
            value. Defaults to 1.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, sr_ratio: int = 1
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims={embed_dims} must be a multiple of '
                f'num_heads={num_heads}.'
            )
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(embed_dims, embed_dims)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(
                embed_dims, embed_dims, sr_ratio, stride=sr_ratio
            )
            self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def reduced_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the keys' map for a token map of ``size``.

        Floors as PVT does, so the last rows and columns of a map that the
        ratio doesn't divide are no keys; but at least one key is left.
        """
        return tuple(max(1, side // self.sr_ratio) for side in size)

    def reduce(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduce the spatial tokens ``(B, E + N, C)`` to ``(B, E + T, C)``."""
        if self.sr_ratio == 1:
            return x
        height, width = size
        extra, tokens = x.tensor_split([x.shape[1] - height * width], dim=1)
        # (B, H * W, C) -> (B, C, H, W)
        image = tokens.unflatten(1, size).permute(0, 3, 1, 2)
        reduced = self.sr(pad_to_patch(image, self.sr_ratio))
        reduced = self.norm(reduced.flatten(2).transpose(1, 2))
        return (
            torch.cat([extra, reduced], dim=1) if extra.shape[1] else reduced
        )

    def forward(
        self,
        queries: Tensor,
        x: Tensor,
        size: tuple[int, int],
        lengths: list[int] | None = None,
    ) -> Tensor:
        """Attend from ``queries`` to ``x``.

        Args:
            queries (Tensor): Normed queries, ``(B, L, C)``, or packed
                ``(sum_b L_b, C)`` if ``lengths`` is given.
            x (Tensor): Normed tokens, extra tokens first, ``(B, E + N, C)``.
            size (tuple[int, int]): Token map's height and width, ``N = H*W``.
            lengths (list[int], optional): Queries of each image.

        Returns:
            Tensor: Of the shape of ``queries``.
        """
        # (B, T, 2C) -> 2 x (B, h, T, d)
        k, v = (
            self.kv(self.reduce(x, size))
            .unflatten(-1, (2, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        q = self.q(queries)
        if lengths is not None:
            return self.proj(packed_attention(q, k, v, lengths))
        # (B, L, C) -> (B, h, L, d)
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def flops(self, size: tuple[int, int], num_extra: int) -> LinearCost:
        """Multiply-adds of one image.

        Keys and values are paid for once; a query pays for its two
        projections and its products with all keys and all values.
        """
        dim = self.q.in_features
        height, width = self.reduced_size(size)
        num_keys = num_extra + height * width
        fixed = 2 * num_keys * dim**2
        if self.sr_ratio > 1:
            fixed += height * width * self.sr_ratio**2 * dim**2
        return LinearCost(fixed, 2 * dim**2 + 2 * num_keys * dim)
