"""The Dynamic Grained Encoder block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..cost import Cost, GranularityMap
from ..layers import MLP, DropPath, SpatialReductionAttention, add
from .grains import (
    Packing,
    Size,
    WithGate,
    candidate_gates,
    candidates,
    coarser,
    own_tokens,
    pack,
    patch_grid,
    plan_packing,
    query_counts,
    unpack,
    update_errors,
)
from .routers import build_router


class DGEBlock(nn.Module):
    """An encoder block in which each region gets its own granularity.

    ::

        tokens --router--> choice
        tokens --pool, pack--> queries --attention, MLP--> update
        tokens + un-pooled update --> tokens

    Keys and values come from all tokens. Queries don't see each other, so
    computing every granularity and choosing one by a one-hot gate (the
    paper's training) equals computing the chosen ones only. To give the
    router the paper's gradient, training computes the others as well, but
    without a graph: multiplied by 0, they get no gradient themselves.

    Source: DGE (NeurIPS 2021), section 3.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads of the attention.
        feedforward_channels (int): Hidden channels of the MLP.
        sr_ratio (int): See :class:`SpatialReductionAttention`.
        granularities (Sequence[int]): Candidates, finest first.
        routing (str | dict): See :func:`build_router`.
        price (float): See :class:`Router`.
        sparse_training (bool): Compute only the chosen granularity in
            training too; the router's gradient then comes from it alone.
        drop_path (float): Probability to drop a sample's residual branch.
        with_cp (bool): Recompute the block in the backward pass to save
            memory. The routing is not recomputed.
        name (str): For the granularity maps.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        sr_ratio: int,
        granularities: Sequence[int],
        routing: str | dict,
        price: float = 0.0,
        sparse_training: bool = False,
        drop_path: float = 0.0,
        with_cp: bool = False,
        name: str = '',
    ) -> None:
        super().__init__()
        self.granularities = tuple(granularities)
        self.sparse_training = sparse_training
        self.with_cp = with_cp
        self.name = name
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = SpatialReductionAttention(embed_dims, num_heads, sr_ratio)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.mlp = MLP(embed_dims, feedforward_channels)
        self.drop_path = DropPath(drop_path)
        self.router = build_router(routing, embed_dims, granularities, price)

    def forward(
        self,
        x: Tensor,
        size: Size,
        stride: int,
        content: Tensor | None = None,
    ) -> tuple[Tensor, Cost]:
        """Run the block.

        Args:
            x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
            size (tuple[int, int]): ``(H, W)``.
            stride (int): Pixels per token, for the granularity map.
            content (Tensor, optional): See :meth:`Router.forward`.

        Returns:
            tuple[Tensor, Cost]: Tokens of the same shape; what it computed.
        """
        num_extra = x.shape[1] - size[0] * size[1]
        decision = None
        if self.router is not None:
            grid = x[:, num_extra:].unflatten(1, size)  # (B, H, W, C)
            errors = partial(self.errors, x, size)
            decision = self.router(grid, content, errors)
        if decision is None:
            return self._run(self._dense, x, size), self._cost(x, size)

        choice, gate = decision
        packing = plan_packing(choice, size, self.granularities, num_extra)
        out = self._run(self._packed, x, size, packing, gate)
        if gate is None:
            queries = packing.counts
        else:
            counts = query_counts(size, self.granularities, x.device)
            # (B, Rh, Rw, K) x (Rh, Rw, K) -> (B,)
            queries = num_extra + (gate.double() * counts).flatten(1).sum(1)
        granularity_map = GranularityMap(
            self.router.sides[choice],
            stride * self.router.region,
            self.name,
            content,
        )
        return out, self._cost(x, size, queries, granularity_map)

    @torch.no_grad()
    def errors(self, x: Tensor, size: Size) -> Tensor:
        """What each granularity would get wrong, region by region.

        Every granularity is computed, more than routing could save: for
        calibration, and for the oracle.

        Args:
            x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
            size (tuple[int, int]): ``(H, W)``.

        Returns:
            Tensor: ``(B, Rh, Rw, K)``, see :func:`update_errors`.
        """
        rows = candidates(x, size, self.granularities)  # (B, E + M, C)
        updates = self._updates_of_all(rows, self.norm1(x), size)
        return update_errors(updates, size, self.granularities)

    def _updates_of_all(
        self,
        rows: Tensor,
        normed: Tensor,
        size: Size,
        kept: tuple[Tensor | None, Tensor | None] = (None, None),
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The updates of all candidates, ``(B, E + M, C)``."""
        flat = rows.flatten(0, 1)  # (B * (E + M), C)
        lengths = [rows.shape[1]] * len(rows)
        updates, _ = self._update(
            flat, self.norm1(flat), lengths, kept, normed, size, keys_values
        )
        return updates.view_as(rows)

    def _run(self, body, x: Tensor, *args) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(body, x, *args, use_reentrant=False)
        return body(x, *args)

    def _dense(self, x: Tensor, size: Size) -> Tensor:
        normed = self.norm1(x)
        update, _ = self._update(
            x.flatten(0, 1),  # (B, E + N, C) -> (B * (E + N), C)
            normed.flatten(0, 1),
            [x.shape[1]] * len(x),
            self._draw(x),
            normed,
            size,
        )
        update = update.view_as(x)
        return add(x, update, out=update)

    def _packed(
        self, x: Tensor, size: Size, packing: Packing, gate: Tensor | None
    ) -> Tensor:
        own = own_tokens(x, size, self.granularities)
        patches = coarser(x, size, self.granularities)
        queries = pack(own, patches, packing)
        normed, kept = self.norm1(x), self._draw(x)
        update, keys_values = self._update(
            queries,
            self.norm1(queries),
            packing.lengths,
            kept,
            normed,
            size,
        )
        if gate is None:
            update = unpack(update, packing)
            return add(x, update, out=update)
        if self.sparse_training:
            # Each row times its own gate: 1, but with a gradient.
            gates = candidate_gates(
                gate, size, self.granularities, x.shape[1] - size[0] * size[1]
            )
            gates = gates[..., None].to(x.dtype)  # (B, E + M, 1)
            gates = gates.tensor_split([own.shape[1]], dim=1)
            return x + unpack(update * pack(*gates, packing), packing)
        # Where the gate is 0 nothing but the gate gets a gradient: what the
        # other candidates would have done is needed, but no graph of it.
        with torch.no_grad():
            rows = torch.cat([own, patches], dim=1)  # (B, E + M, C)
            updates = self._updates_of_all(
                rows, normed, size, kept, keys_values
            )
        return WithGate.apply(
            x + unpack(update, packing),
            gate,
            updates,
            size,
            self.granularities,
        )

    def _draw(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Which images keep the attention's update, and the MLP's."""
        return self.drop_path.draw(len(x), x), self.drop_path.draw(len(x), x)

    def _update(
        self,
        queries: Tensor,
        normed_queries: Tensor,
        lengths: list[int],
        kept: tuple[Tensor | None, Tensor | None],
        normed: Tensor,
        size: Size,
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What the block adds to packed queries; the keys and values."""
        attended, keys_values = self.attn(
            normed_queries, lengths, normed, size, keys_values
        )
        attended = self.drop_path(attended, kept[0], lengths)
        rows = queries + attended
        hidden = self.mlp(self.norm2(rows))
        hidden = self.drop_path(hidden, kept[1], lengths)
        return add(attended, hidden, out=rows), keys_values

    def _cost(
        self,
        x: Tensor,
        size: Size,
        queries: Tensor | None = None,
        granularity_map: GranularityMap | None = None,
    ) -> Cost:
        """What ran for ``queries`` of each image, ``(B,)``; None for all."""
        num_tokens = x.shape[1]
        num_extra = num_tokens - size[0] * size[1]
        flops = self.attn.flops(size, num_extra) + self.mlp.flops()
        dense = Cost.constant(flops.at(num_tokens), len(x), x.device)
        if queries is None:
            return dense
        num_regions = math.prod(patch_grid(size, self.router.region))
        routing = self.router.flops().at(num_regions)
        dynamic = flops.at(queries.double()) + routing
        return Cost(dynamic, dense.dense, (granularity_map,))
