"""Attention to a few points of the map, and PVT's block with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import LinearCost
from .block import OnMap, Prepared, Size
from .transformer import TransformerBlock


class Context(NamedTuple):
    """What :meth:`DeformableBlock.prepare` made of all tokens.

    Attributes:
        values (Tensor): Their map, ``(B, H, W, C)``.
        kept (tuple): See :class:`Block`; of the attention, and the MLP.
        normed (Tensor): The tokens, normed, ``(B, H * W, C)``.
        centres (Tensor | None): Where rows stand, x and y in tokens, that of
            the first token being (0, 0), ``(sum_b L_b, 2)``; set for rows.
    """

    values: Tensor
    kept: tuple[Tensor | None, Tensor | None]
    normed: Tensor
    centres: Tensor | None = None


def sample(maps: Tensor, points: Tensor, images: Tensor) -> Tensor:
    """Interpolate maps bilinearly, which are 0 outside.

    As :func:`torch.nn.functional.grid_sample` does, which is slower on a CPU
    and asks for as many points in each image.

    Args:
        maps (Tensor): ``(B, H, W, h, d)``.
        points (Tensor): x and y in tokens, ``(L, h, P, 2)``, float32 or
            finer; (0, 0) is a map's first token.
        images (Tensor): Whose they are, ``(L,)``.

    Returns:
        Tensor: ``(L, h, P, d)``.
    """
    height, width, heads, dims = maps.shape[1:]
    column, across = _neighbours(points[..., 0], width)  # (L, h, P, 2)
    row, down = _neighbours(points[..., 1], height)
    head = torch.arange(heads, device=maps.device)
    row = images[:, None, None, None] * height + row
    index = row[..., :, None] * width + column[..., None, :]
    index = index * heads + head[:, None, None, None]  # (L, h, P, 2, 2)
    weight = down[..., :, None] * across[..., None, :]
    bags = F.embedding_bag(
        index.view(-1, 4),
        maps.reshape(-1, dims),  # (B * H * W * h, d)
        mode='sum',
        per_sample_weights=weight.to(maps.dtype).view(-1, 4),
    )
    return bags.view(*points.shape[:3], dims)


def _neighbours(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two tokens of a line next to ``x (...)``, and their weights.

    Returns:
        tuple[Tensor, Tensor]: ``(..., 2)`` each. Those beyond the ends weigh
        0, and have the number of an end.
    """
    first = x.detach().floor()
    part = x - first
    near = torch.stack([first, first + 1], -1)
    weight = torch.stack([1 - part, part], -1)
    inside = (near >= 0) & (near < length)
    # Last, because what is not finite becomes any integer.
    return near.long().clamp(0, length - 1), weight * inside


class DeformableAttention(nn.Module):
    """Multi-head attention to the values at a few points around each row.

    Source: the deformable PVT of vtpack, the official code of DGE, after
    Deformable DETR (Zhu et al., ICLR 2021).

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads ``h``; must divide ``embed_dims``.
    """

    num_points = 4  # of each head
    gradient_scale = 0.1  # of what moves the points

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise UserError(
                f'embed_dims={embed_dims} must be a multiple of '
                f'num_heads={num_heads}.'
            )
        # The formulae read these, not layers that an adapter may replace.
        self.embed_dims = embed_dims
        self.num_heads, self.head_dims = num_heads, embed_dims // num_heads
        num_points = num_heads * self.num_points
        self.v = nn.Linear(embed_dims, embed_dims)
        self.offsets = nn.Linear(embed_dims, 2 * num_points)
        self.weights = nn.Linear(embed_dims, num_points)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.reset_offsets()

    @torch.no_grad()
    def reset_offsets(self) -> None:
        """Let all rows look alike: each head into a direction of its own.

        Its point p lies on the square ring of radius p + 1 tokens.
        """
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)  # (h, 2)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        radii = torch.arange(1.0, self.num_points + 1)
        points = ring[:, None] * radii[:, None]  # (h, P, 2)
        nn.init.zeros_(self.offsets.weight)
        self.offsets.bias.copy_(points.flatten())

    def forward(
        self,
        x: Tensor,
        context: Context | None = None,
        lengths: list[int] | None = None,
        attend: Callable | None = None,
    ) -> Tensor:
        """Make values, or attend to them: both, because of FSDP.

        Args:
            x (Tensor): Normed tokens ``(B, H * W, C)``, or rows
                ``(sum_b L_b, C)``.
            context (Context, optional): What rows attend to, and where they
                stand.
            lengths (list[int], optional): Rows of each image.
            attend (Callable, optional): Of no use here.

        Returns:
            Tensor: Of the shape of ``x``: without a context the values, else
            the rows' attention.
        """
        if context is None:
            return self.v(x)
        values, *_, centres = context
        heads = self.num_heads, self.num_points
        offsets = self.offsets(x).view(-1, *heads, 2)
        if offsets.requires_grad:
            fixed = offsets.detach()
            offsets = fixed + self.gradient_scale * (offsets - fixed)
        images = torch.arange(len(values), device=x.device)
        sampled = sample(
            values.unflatten(-1, (self.num_heads, self.head_dims)),
            centres[:, None, None] + offsets,
            torch.cat(
                [
                    image.expand(length)
                    for image, length in zip(
                        images.split(1), lengths, strict=True
                    )
                ]
            ),
        )
        weights = self.weights(x).view(-1, *heads).softmax(-1)
        # (L, h, 1, P) @ (L, h, P, d) -> (L, h, 1, d)
        out = weights.to(sampled.dtype)[..., None, :] @ sampled
        return self.proj(out.flatten(1))

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """Multiply-adds of one image; without those of the interpolation.

        A row pays for its points, their weights and their weighted sum, and
        for one projection.
        """
        dims, num_points = self.embed_dims, self.num_heads * self.num_points
        return LinearCost(
            math.prod(size) * dims**2,
            3 * num_points * dims + self.num_points * dims + dims**2,
        )


class DeformableBlock(TransformerBlock):
    """PVT's block with :class:`DeformableAttention`.

    The source has two channels more, see :attr:`Context.centres`: whoever
    averages tokens to a row averages their places, too.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads of the attention.
        feedforward_channels (int): Hidden channels of the MLP.
        drop_path (float): See :class:`TransformerBlock`. Defaults to 0.
        name (str): For reports. Defaults to ``''``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        drop_path: float = 0.0,
        name: str = '',
    ) -> None:
        super().__init__(
            embed_dims,
            num_heads,
            feedforward_channels,
            drop_path=drop_path,
            name=name,
        )
        self.attn = DeformableAttention(embed_dims, num_heads)

    def prepare(self, x: Tensor, size: Size) -> Prepared:
        """See :class:`Block`; for maps without extra tokens.

        The source is of float32 at least, or far places would be rounded.
        """
        normed, draw = self.norm1(x), self.drop_path.draw
        values = self.attn(normed).unflatten(1, size)
        kept = draw(len(x), x), draw(len(x), x)
        numbers = torch.arange(x.shape[1], device=x.device)
        centres = torch.stack([numbers % size[1], numbers // size[1]], -1)
        exact = torch.promote_types(x.dtype, torch.float32)
        # (B, N, C) and (N, 2) -> (B, N, C + 2)
        source = torch.cat(
            [x.to(exact), centres.to(exact).expand(len(x), -1, -1)], -1
        )
        return Prepared(x, source, Context(values, kept, normed))

    def update(
        self,
        rows: Tensor,
        lengths: list[int],
        context: Context,
        on_map: OnMap | None = None,
        normed: Tensor | None = None,
    ) -> Tensor:
        """See :class:`TransformerBlock`; rows are ``(sum_b L_b, C + 2)``."""
        rows, centres = rows.tensor_split([-2], dim=1)
        return super().update(
            rows.to(context.normed.dtype),
            lengths,
            context._replace(centres=centres),
            on_map,
            normed=normed,
        )
