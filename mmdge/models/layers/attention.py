"""Attention whose queries may be packed, keys and values from all tokens."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import LinearCost
from .patch_embed import pad_to_patch

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int]
) -> Tensor:
    """Attention of packed queries to their own image's keys and values.

    Exact and without padding: images with equally many queries run as one
    batch, others in one call where PyTorch has a kernel for it, or else one
    after the other.

    Args:
        q (Tensor): Packed queries, image-major, ``(sum_b L_b, h, d)``.
        k (Tensor): Keys, ``(B, T, h, d)``.
        v (Tensor): Values, like ``k``.
        lengths (list[int]): Number of queries of each image, ``L_b``.

    Returns:
        Tensor: ``(sum_b L_b, h, d)``.
    """
    if len(set(lengths)) == 1:
        # (B * L, h, d) -> (B, L, h, d)
        q = q.view(len(lengths), lengths[0], *q.shape[1:])
        return _attention(q, k, v).flatten(0, 1)
    if can_use_varlen(q):
        return _varlen_attention(q, k, v, lengths)
    outs = [
        _attention(q_i[None], k[i : i + 1], v[i : i + 1])[0]
        for i, q_i in enumerate(q.split(lengths))
        if len(q_i)
    ]
    return torch.cat(outs)


def can_use_varlen(q: Tensor) -> bool:
    """Whether PyTorch has a kernel for sequences of unequal length.

    It has from 2.10 on, for half precision on NVIDIA GPUs that know
    bfloat16, and for heads of at most 256 channels, in eights. Where flash
    attention is switched off, as for counting FLOPs, so is this.
    """
    return (
        varlen_attn is not None
        and q.is_cuda
        and torch.version.hip is None
        and q.dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cuda.flash_sdp_enabled()
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``(B, L, h, d)`` to ``(B, T, h, d)``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int]
) -> Tensor:
    """See :func:`packed_attention`."""
    batch_size, num_keys = k.shape[:2]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return varlen_attn(
        q,
        k.flatten(0, 1),
        v.flatten(0, 1),
        ends.to(q.device, non_blocking=True),
        torch.arange(batch_size + 1, dtype=torch.int32, device=q.device)
        * num_keys,
        max(lengths),
        num_keys,
    )


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
            # Channels last, as the tokens are: their map needs no copy.
            self.sr = nn.Conv2d(
                embed_dims, embed_dims, sr_ratio, stride=sr_ratio
            ).to(memory_format=torch.channels_last)
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
        lengths: list[int],
        x: Tensor,
        size: tuple[int, int],
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from packed queries to all tokens.

        Args:
            queries (Tensor): Normed queries, packed, ``(sum_b L_b, C)``.
            lengths (list[int]): Queries of each image, ``L_b``.
            x (Tensor): Normed tokens, extra tokens first, ``(B, E + N, C)``.
            size (tuple[int, int]): Token map's height and width, ``N = H*W``.
            keys_values (tuple[Tensor, Tensor], optional): What an earlier
                call with the same ``x`` returned, to be used again.

        Returns:
            tuple[Tensor, tuple[Tensor, Tensor]]: The queries' update, of
            their shape; keys and values, ``(B, E + T, h, d)`` each.
        """
        if keys_values is None:
            kv = self.kv(self.reduce(x, size))
            # (B, T, 2C) -> 2 x (B, T, h, d)
            kv = kv.view(*kv.shape[:2], 2, self.num_heads, -1)
            keys_values = kv.unbind(2)
        # (sum L, C) -> (sum L, h, d)
        q = self.q(queries).view(-1, *keys_values[0].shape[2:])
        out = packed_attention(q, *keys_values, lengths)
        return self.proj(out.flatten(1)), keys_values

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
