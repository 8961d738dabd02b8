"""DGE: each region of tokens gets as many rows as it deserves.

A block's path, step by step::

    tokens --router--> choice                          score, decide
    tokens --pool, pack--> rows                        rows
    rows --attention, MLP--> updates                   update
    tokens + un-pooled updates --> tokens              scatter
    FLOPs of the rows, share of each region            cost

Keys and values come from all tokens. Rows don't see each other, so computing
every granularity and choosing one by a one-hot gate (the paper's training)
equals computing the chosen ones only. To give the router the paper's
gradient, training computes the others as well, but without a graph:
multiplied by 0, they get no gradient themselves.

Source: DGE (Song et al., NeurIPS 2021), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mmdge.utils import UserError

from ..cost import ComputeMap, Cost
from ..layers import Block, add
from ..routing import (
    Decision,
    EffectRouter,
    Grains,
    WithGate,
    build_router,
)
from ..routing.granularity import Choice
from .base import Method


class Granularity(Method):
    """Dynamic grained encoders on any architecture.

    Attributes:
        granularities (list[tuple[int, ...]]): Candidates, stage by stage.
        sparse_training (bool): In training compute the chosen one only.
    """

    def add_routers(
        self,
        granularities: Sequence,
        routing: str | dict | Sequence,
        price: float,
        sparse_training: bool,
    ) -> None:
        """Give each block a router, arguments as of :class:`mmdge.DGEPVT`."""
        # A later stage may not be built, but is checked.
        num_stages = self.max_stages
        self.granularities = check_granularities(granularities, num_stages)
        self.cells = [sides[-1] for sides in self.granularities]
        self.sparse_training = sparse_training
        if not isinstance(routing, (list, tuple)):
            routing = [routing] * num_stages
        if len(routing) != num_stages:
            raise UserError(
                f'routing={routing} must be one routing, or {num_stages}, one '
                'per stage.'
            )
        for sides, kind, blocks in zip(
            self.granularities, routing, self.stages, strict=False
        ):
            cost = [(sides[0] / side) ** 2 for side in sides]
            for block in blocks:
                router = build_router(
                    kind, block.embed_dims, cost, sides[-1], price
                )
                if isinstance(router, EffectRouter):
                    raise UserError(
                        f'routing={kind!r} is for methods that decide once, '
                        "as mmdge.MixedPatchViT; here use 'error'."
                    )
                if router is not None:
                    router.register_buffer(
                        'sides',
                        torch.tensor(sides),
                        persistent=router.records_sides,
                    )
                block.router = router
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def run_blocks(
        self,
        stage: int,
        tokens: Tensor,
        size: tuple[int, int],
        mask: Tensor | None,
        keep: Collection[int],
    ) -> tuple[list[Tensor], Cost]:
        """See :class:`Backbone`."""
        if self.dense:
            return super().run_blocks(stage, tokens, size, mask, keep)
        num_extra = tokens.shape[1] - size[0] * size[1]
        grains = Grains(size, self.granularities[stage], num_extra)
        valid = self.valid_cells(mask, stage, grains.grids[-1])
        outs, costs = [], []
        for number, block in enumerate(self.stages[stage]):
            body = partial(
                self._run_block,
                grains=grains,
                valid=valid,
                stride=self.strides[stage],
            )
            tokens, cost = block(tokens, size, body)
            costs.append(cost)
            if number in keep:
                outs.append(tokens)
        return outs, Cost.add_up(costs)

    def _run_block(
        self,
        block: Block,
        tokens: Tensor,
        size: tuple[int, int],
        grains: Grains,
        valid: Tensor | None,
        stride: int,
    ) -> tuple[Tensor, Cost]:
        decision = decide(block, tokens, grains, valid)
        flops = block.flops(grains.size, grains.num_extra)
        dense = Cost.constant(
            flops.at(tokens.shape[1]), len(tokens), tokens.device
        )
        if decision is None:
            return self.run(block.update_all, tokens, size), dense
        choice = grains.choose(decision.choice, decision.shares)
        tokens = self.run(
            partial(update_chosen, block),
            tokens,
            grains,
            choice,
            decision.gate,
            self.sparse_training,
        )
        shares = grains.shares(tokens.device)  # (K,)
        if decision.gate is None:
            num_rows, share = choice.counts, shares[decision.choice]
        else:
            gate = decision.gate.double()  # (B, Rh, Rw, K)
            row_counts = grains.row_counts(tokens.device)  # (Rh, Rw, K)
            num_rows = (gate * row_counts).flatten(1).sum(1)
            num_rows = grains.num_extra + num_rows
            share = gate @ shares
        dynamic = flops.at(num_rows.double())
        if block.router is not None:
            num_cells = math.prod(grains.grids[-1])
            dynamic = dynamic + block.router.flops().at(num_cells)
        cell = stride * grains.region
        decided = ComputeMap(share, cell, block.name, valid)  # (B, Rh, Rw)
        return tokens, Cost(dynamic, dense.dense, (decided,))


def decide(
    block: Block,
    tokens: Tensor,
    grains: Grains,
    valid: Tensor | None,
) -> Decision | None:
    """Choose a granularity for each region of ``tokens (B, E + N, C)``.

    ``valid`` are the regions that are no padding. None: each token is a row.
    """
    grid = grains.to_map(tokens)  # (B, H, W, C)
    decision = None
    if block.router is not None:
        errors = CandidateErrors(block, tokens, grains)
        decision = block.router(grid, valid, errors)
    if decision is None and grains.sides[0] > 1:
        finest = grid.new_zeros(len(grid), *grains.grids[-1], dtype=torch.long)
        shares = (1.0, *[0.0] * (len(grains.sides) - 1))
        decision = Decision(finest, None, shares)
    return decision


def update_chosen(
    block: Block,
    tokens: Tensor,
    grains: Grains,
    choice: Choice,
    gate: Tensor | None,
    sparse: bool,
) -> Tensor:
    """Update each region of ``tokens (B, E + N, C)`` as was chosen.

    ``gate (B, Rh, Rw, K)`` is one-hot with a straight-through gradient;
    ``sparse`` gives it the gradient of the chosen candidate alone.
    """
    pool, unpool, lengths, *_ = choice
    base, source, context = block.prepare(tokens, grains.size)
    candidates = grains.candidates(source)
    on_map = partial(grains.on_map, choice=choice)
    update = block.update(pool(candidates), lengths, context, on_map)
    if gate is None:
        update = unpool(update)
        return add(base, update, out=update)
    if sparse:
        # Each token times the gate of its region: 1, but with a gradient.
        return base + unpool(update) * grains.spread(gate).to(base.dtype)
    # Where the gate is 0 nothing but the gate gets a gradient: what the other
    # candidates would have done is needed, but no graph of it.
    with torch.no_grad():
        others = updates_of_all(block, source, context, grains)
    return WithGate.apply(base + unpool(update), gate, others, grains)


def updates_of_all(
    block: Block, source: Tensor, context: Any, grains: Grains
) -> Tensor:
    """The updates of all candidates, ``(B, E + M, C)``.

    Where a block's rows see their neighbours, these are of the same
    granularity.
    """
    rows = torch.cat(grains.candidates(source), 1)
    lengths = [rows.shape[1]] * len(rows)
    return block.update(
        rows.flatten(0, 1), lengths, context, grains.on_maps_of_all
    ).unflatten(0, rows.shape[:2])


@dataclass(frozen=True)
class CandidateErrors:
    """What each granularity would get wrong, region by region.

    Every granularity is computed, more than routing could save: for
    calibration, and for the oracle.

    Attributes:
        block (Block): Whose update.
        tokens (Tensor): ``(B, E + N, C)``.
        grains (Grains): Of their map.
    """

    block: Block
    tokens: Tensor
    grains: Grains

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """``(B, Rh, Rw, K)``, see :meth:`Grains.errors`."""
        _, source, context = self.block.prepare(self.tokens, self.grains.size)
        context = context._replace(kept=(None,) * len(context.kept))
        # (B, E + M, C)
        updates = updates_of_all(self.block, source, context, self.grains)
        return self.grains.errors(updates)

    @property
    def is_choice(self) -> Tensor:
        """Regions of more than one row at the finest, ``(Rh, Rw)``, bool."""
        counts = self.grains.row_counts(self.tokens.device)
        return counts[..., 0] > counts[..., -1]

    @property
    def flops_per_row(self) -> int:
        """Multiply-adds of a row."""
        grains = self.grains
        return self.block.flops(grains.size, grains.num_extra).per_row


def check_granularities(
    granularities: Sequence, num_stages: int
) -> list[tuple[int, ...]]:
    """Bring ``granularities`` to one valid tuple per stage.

    Raises:
        UserError: If there are not as many sets, a set isn't ascending, or a
            member doesn't divide the last one.
    """

    def is_valid(sides: object) -> bool:
        return (
            isinstance(sides, (list, tuple))
            and len(sides) > 0
            and all(isinstance(side, Integral) for side in sides)
            and not any(isinstance(side, bool) for side in sides)
            and sides[0] > 0
            and list(sides) == sorted(set(sides))
            and not any(sides[-1] % side for side in sides)
        )

    per_stage = granularities
    if is_valid(granularities):
        per_stage = [granularities] * num_stages
    if (
        not isinstance(per_stage, (list, tuple))
        or len(per_stage) != num_stages
        or not all(map(is_valid, per_stage))
    ):
        raise UserError(
            f'granularities={granularities!r} must be positive and ascending '
            'integers, each dividing the last, e.g. (1, 2, 4), one set or '
            f'{num_stages}, one per stage.'
        )
    return [tuple(map(int, sides)) for sides in per_stage]
