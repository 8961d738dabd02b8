"""Attention inside windows of a map, and Swin's block with it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import LinearCost
from ..tables import table
from .block import Block, OnMap, Prepared, Size, add
from .transformer import MLP, num_parts


class Windows(NamedTuple):
    """How maps of one size are cut into windows of ``L`` tokens each.

    The map is padded at the right and at the bottom to whole windows, then
    rolled to the left and up by the shift. The windows of the whole batch
    come in an order of their own, those of one ``kind`` together, and so do
    the ``R = B * H * W`` tokens in them.

    Attributes:
        order (Tensor): Which token each row is, ``(R,)``.
        rows (Tensor): Which row each token is, ``(R,)``; its inverse.
        slots (Tensor): The rows' places in the windows, ``(R,)``; the other
            places are padding.
        starts (list[int]): First row of each window, and the number of rows.
        kinds (list[int]): First window of each kind, and the number of
            windows. Windows of kind 1 and 3 hold two ends of the map below
            each other, those of kind 2 and 3 side by side.
    """

    order: Tensor
    rows: Tensor
    slots: Tensor
    starts: list[int]
    kinds: list[int]


# The blocks of a stage share two of them; 8 sizes of Swin.
@table(64)
def cut_windows(
    batch_size: int, size: Size, side: int, shift: int, device: torch.device
) -> Windows:
    """Cut maps of ``size`` into windows of ``side x side`` tokens."""
    grid = window_grid(size, side)
    # What stands at each place of the padded and rolled map.
    y, x = (np.roll(np.arange(num * side), -shift) for num in grid)
    token = y[:, None] * size[1] + x  # (nh * S, nw * S)
    real = (y < size[0])[:, None] & (x < size[1])
    token, real = (
        # (nh * S, nw * S) -> (nh, S, nw, S) -> (nh, nw, S, S) -> (nh * nw, L)
        t.reshape(grid[0], side, grid[1], side)
        .swapaxes(1, 2)
        .reshape(-1, side**2)
        for t in (token, real)
    )
    kind = np.zeros(grid, int)
    if shift:
        kind[-1] += 1
        kind[:, -1] += 2
    # Whole windows first, so that few parts of them hold padding.
    rank = np.tile(2 * kind.ravel() + ~real.all(1), batch_size)
    found = rank.argsort(kind='stable')
    image = np.arange(batch_size)[:, None, None] * math.prod(size)
    token = (image + token).reshape(-1, side**2)[found]  # (B * nW, L)
    real = np.tile(real, (batch_size, 1))[found]
    order = token[real]
    rows = np.empty_like(order)
    rows[order] = np.arange(len(order))
    return Windows(
        torch.tensor(order, device=device),
        torch.tensor(rows, device=device),
        torch.tensor(real.ravel().nonzero()[0], device=device),
        [0, *real.sum(1).cumsum().tolist()],
        np.searchsorted(rank[found], 2 * np.arange(5)).tolist(),
    )


def window_grid(size: Size, side: int) -> Size:
    """Rows and columns of windows of a map of ``size``."""
    return -(-size[0] // side), -(-size[1] // side)


class _Pairs(NamedTuple):
    """Of the tokens of a window, see :func:`_pairs`."""

    index: Tensor  # (L * L,) in the table of biases, query by query
    apart: Tensor  # (4, L, L) -100 where they aren't neighbours, by kind


@table(16)
def _pairs(side: int, shift: int, device: torch.device) -> _Pairs:
    y, x = np.divmod(np.arange(side**2), side)
    dy, dx = (t[:, None] - t + side - 1 for t in (y, x))  # (L, L)
    below, right = (
        (t[:, None] < side - shift) != (t < side - shift) for t in (y, x)
    )
    apart = np.stack([0 * below, below, right, below | right])
    return _Pairs(
        torch.tensor((dy * (2 * side - 1) + dx).ravel(), device=device),
        # -100 is the official code's; half precision has room for it.
        torch.tensor(-100.0 * apart, dtype=torch.float, device=device),
    )


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with relative position biases.

    Source: Swin (Liu et al., ICCV 2021), section 3.2; parameter names of the
    official code, but ``qkv`` is ``q`` and ``kv``. Padding takes part as
    tokens of 0 would, as in the hosts; but its projections, which are the
    biases, are not computed.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads; must divide ``embed_dims``.
        window_size (int): Side of a window in tokens.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, window_size: int
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise UserError(
                f'the channels of a stage, {embed_dims}, must be a multiple '
                f'of its num_heads={num_heads}.'
            )
        # The formulae read these, not layers that an adapter may replace.
        self.embed_dims = embed_dims
        self.num_heads, self.head_dims = num_heads, embed_dims // num_heads
        self.window_size = window_size
        self.q = nn.Linear(embed_dims, embed_dims)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )

    def forward(
        self,
        rows: Tensor,
        windows: Windows,
        shift: int,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Attention of normed rows, in the windows' order.

        Args:
            rows (Tensor): ``(R, C)``.
            windows (Windows): Where they are.
            shift (int): Of the windows, in tokens.
            queries (Tensor, optional): Theirs, projected, ``(R, C)``; then
                what is attended is not projected. Defaults to None: both are.

        Returns:
            Tensor: ``(R, C)``.
        """
        pairs = _pairs(self.window_size, shift, rows.device)
        # (T, h) -> (h, L * L) -> (h, L, L)
        bias = self.relative_position_bias_table.t()[:, pairs.index]
        bias = bias.unflatten(1, pairs.apart.shape[1:])
        biases = bias + pairs.apart[:, None].to(bias)  # (4, h, L, L)
        num = len(windows.starts) - 1
        parts = min(num, num_parts(rows, 5 * self.embed_dims))
        ends = [num * i // parts for i in range(parts + 1)]
        outs = [
            self._attend(rows, windows, biases, queries, *part)
            for part in zip(ends[:-1], ends[1:], strict=True)
        ]
        return torch.cat(outs) if parts > 1 else outs[0]

    def _attend(
        self,
        rows: Tensor,
        windows: Windows,
        biases: Tensor,
        queries: Tensor | None,
        first: int,
        last: int,
    ) -> Tensor:
        """Attention of the windows from ``first`` on, before ``last``."""
        num, length = last - first, self.window_size**2
        here = slice(windows.starts[first], windows.starts[last])
        rows, slots = rows[here], None
        q = self.q(rows) if queries is None else queries[here]
        kv = self.kv(rows)
        if len(rows) < num * length:  # there is padding
            slots = windows.slots[here] - first * length
            q, kv = (
                _of_zero(layer, rows)
                .to(x.dtype)
                .expand(num * length, -1)
                .index_copy(0, slots, x)
                for layer, x in ((self.q, q), (self.kv, kv))
            )
        heads = self.num_heads, self.head_dims
        q = q.view(num, length, *heads).transpose(1, 2)  # (n, h, L, d)
        k, v = kv.view(num, length, 2, *heads).permute(2, 0, 3, 1, 4)
        ends = [min(max(end, first), last) - first for end in windows.kinds]
        outs = [
            F.scaled_dot_product_attention(
                *(x[begin:end] for x in (q, k, v)),
                attn_mask=bias.to(q.dtype).expand(end - begin, -1, -1, -1),
            ).transpose(1, 2)
            for bias, begin, end in zip(
                biases, ends[:-1], ends[1:], strict=True
            )
            if begin < end
        ]
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        out = out.reshape(num * length, -1)  # (n, L, h, d) -> (n * L, C)
        out = out if slots is None else out.index_select(0, slots)
        return self.proj(out) if queries is None else out

    def flops(self, size: Size, coarse_queries: bool) -> LinearCost:
        """Multiply-adds of one image: padding is attended, not projected."""
        rows, columns = window_grid(size, self.window_size)
        pairs = 2 * rows * columns * self.window_size**4 * self.embed_dims
        projections = 2 * self.embed_dims**2
        keys = size[0] * size[1] * projections
        if coarse_queries:
            return LinearCost(keys + pairs, projections)
        return LinearCost(2 * keys + pairs, 0)


def _of_zero(layer: nn.Module, rows: Tensor) -> Tensor:
    """What a linear layer, or an adapter around it, makes of a row of 0."""
    bias = getattr(layer, 'bias', None)
    if bias is None:
        return layer(rows.new_zeros(1, rows.shape[1]))
    return bias


class Context(NamedTuple):
    """What :meth:`SwinBlock.prepare` leaves to rows.

    Attributes:
        kept (tuple): See :class:`Block`; of the MLP, and where queries may be
            coarse of the attention before it.
        normed (Tensor | None): All tokens, normed, in the windows' order,
            ``(R, C)``, where queries may be coarse.
        windows (Windows | None): Theirs.
        shift (int): Of the windows.
    """

    kept: tuple[Tensor | None, ...]
    normed: Tensor | None = None
    windows: Windows | None = None
    shift: int = 0


class WindowQueries(NamedTuple):
    """A :class:`MapLayer`, for one call: rows as queries in their windows.

    A coarse row's query is copied to its tokens, which differ by their
    position biases alone, and what they attend to is averaged: regions need
    not tile the windows.

    Attributes:
        block (SwinBlock): Whose attention.
        context (Context): Of all tokens.
    """

    block: SwinBlock
    context: Context

    def before(self, rows: Tensor) -> Tensor:
        """Rows ``(L, C)`` to queries."""
        return self.block.attn.q(self.block.norm1(rows))

    def on_map(self, maps: Tensor) -> Tensor:
        """Queries ``(B, H, W, C)`` to what they attend to."""
        _, normed, windows, shift = self.context
        queries = maps.flatten(0, 2).index_select(0, windows.order)
        out = self.block.attn(normed, windows, shift, queries)
        return out.index_select(0, windows.rows).view_as(maps)

    def after(self, hidden: Tensor) -> Tensor:
        """What rows attended to, projected."""
        return self.block.attn.proj(hidden)

    def num_parts(self, rows: Tensor) -> int:
        """One: a window may lie anywhere."""
        return 1


class SwinBlock(Block):
    """Swin's block: window attention of all tokens, then an MLP of rows.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads of the attention.
        feedforward_channels (int): Hidden channels of the MLP.
        window_size (int): Side of a window in tokens.
        shift (int): By how many tokens windows are shifted. Defaults to 0.
        pad_small_map (bool): See :class:`mmdge.models.architectures.Swin`.
            Defaults to True.
        drop_path (float): Probability to drop a sample's residual branch.
            Defaults to 0.
        name (str): For reports. Defaults to ``''``.

    Attributes:
        coarse_queries (bool): Rows are queries of the attention, too.
            Defaults to False.
    """

    coarse_queries = False

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        window_size: int,
        shift: int = 0,
        pad_small_map: bool = True,
        drop_path: float = 0.0,
        name: str = '',
    ) -> None:
        super().__init__(embed_dims, drop_path, name)
        self.shift = shift
        self.pad_small_map = pad_small_map
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-5)
        self.attn = WindowAttention(embed_dims, num_heads, window_size)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-5)
        self.mlp = MLP(embed_dims, feedforward_channels)

    def prepare(self, x: Tensor, size: Size) -> Prepared:
        """See :class:`Block`; the attention is added to the base."""
        side, shift = self.attn.window_size, self.shift
        if min(size) <= side and not self.pad_small_map:
            shift = 0
        windows = cut_windows(len(x), size, side, shift, x.device)
        # (B, N, C) -> (B * N, C)
        rows = x.flatten(0, 1).index_select(0, windows.order)
        normed, draw = self.norm1(rows), self.drop_path.draw
        kept = draw(len(x), x), draw(len(x), x)
        if self.coarse_queries:
            context = Context(kept[::-1], normed, windows, shift)
            return Prepared(x, x, context)
        attended = self.attn(normed, windows, shift)
        attended = attended.index_select(0, windows.rows)
        if kept[0] is not None:  # else it is no output of a module
            lengths = [x.shape[1]] * len(x)
            attended = self.drop_path(attended, kept[0], lengths)
        attended = attended.view_as(x)
        base = add(x, attended, out=attended)
        return Prepared(base, base, Context(kept[1:]))

    def update(
        self,
        rows: Tensor,
        lengths: list[int],
        context: Context,
        on_map: OnMap | None = None,
    ) -> Tensor:
        """See :class:`Block`; the MLP of rows, maybe attention before."""
        attended = None
        if self.coarse_queries:
            attended = on_map(WindowQueries(self, context), rows)
            attended = self.drop_path(attended, context.kept[1], lengths)
            rows = rows + attended
        hidden = self.mlp(self.norm2(rows))
        hidden = self.drop_path(hidden, context.kept[0], lengths)
        return hidden if attended is None else add(attended, hidden, out=rows)

    def update_all(self, x: Tensor, size: Size) -> Tensor:
        """See :class:`Block`; an update is a module's output here."""
        prepared = self.prepare(x, size)
        update = self.update_prepared(prepared, size)
        out = update if self.coarse_queries else prepared.base
        return add(prepared.base, update, out=out)

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """See :class:`Block`."""
        return self.attn.flops(size, self.coarse_queries) + self.mlp.flops(
            size
        )
