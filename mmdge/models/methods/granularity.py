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
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmdge.utils import UserError

from ..cost import ComputeMap, Cost, LinearCost
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
        blocks_per_decision (int | str): See :class:`mmdge.DGEPVT`.
    """

    def add_routers(
        self,
        granularities: Sequence,
        routing: str | dict | Sequence,
        price: float,
        sparse_training: bool,
        blocks_per_decision: int | str = 1,
    ) -> None:
        """Give blocks their routers, arguments as of :class:`mmdge.DGEPVT`."""
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
        if blocks_per_decision != 'stage' and (
            not isinstance(blocks_per_decision, Integral)
            or isinstance(blocks_per_decision, bool)
            or blocks_per_decision < 1
        ):
            raise UserError(
                'blocks_per_decision must be an integer of at least 1, or '
                f"'stage', but got {blocks_per_decision!r}."
            )
        self.blocks_per_decision = blocks_per_decision
        for sides, kind, blocks in zip(
            self.granularities, routing, self.stages, strict=False
        ):
            cost = [(sides[0] / side) ** 2 for side in sides]
            for first, *others in self._groups(blocks):
                router = build_router(
                    kind, first.embed_dims, cost, sides[-1], price
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
                first.router = router
                for block in others:
                    block.router = None
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def _groups(self, blocks: Sequence[Block]) -> list[Sequence[Block]]:
        """Put the blocks of a stage together that share a decision."""
        blocks, num = list(blocks), self.blocks_per_decision
        num = len(blocks) if num == 'stage' else num
        return [blocks[i : i + num] for i in range(0, len(blocks), num)]

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
        cell = self.strides[stage] * grains.region
        outs, maps, number = [], [], 0
        dense, fixed, of_rows = 0, 0, 0  # FLOPs
        for blocks in self._groups(self.stages[stage]):
            flops = LinearCost(0, 0)
            for block in blocks:
                flops = flops + block.flops(size, num_extra)
            decided = None
            for block in blocks:
                body = partial(
                    self._run_block,
                    grains=grains,
                    valid=valid,
                    flops_per_row=flops.per_row,
                    decided=decided,
                    is_last=block is blocks[-1],
                )
                tokens, decided = block(tokens, size, body)
                if number in keep:
                    outs.append(tokens)
                number += 1
            dense += flops.at(tokens.shape[1])
            if decided.choice is None:
                fixed += flops.at(tokens.shape[1])
                continue
            num_rows, share = rows_and_shares(grains, decided)
            of_rows = of_rows + flops.per_row * num_rows
            fixed += flops.fixed
            if blocks[0].router is not None:
                num_cells = math.prod(grains.grids[-1])
                fixed += blocks[0].router.flops().at(num_cells)
            maps.append(ComputeMap(share, cell, blocks[0].name, valid))
        cost = Cost.constant(dense, len(tokens), tokens.device)
        if maps:
            dynamic = (fixed + of_rows).double()
            cost = replace(cost, dynamic=dynamic, maps=tuple(maps))
        return outs, cost

    def _run_block(
        self,
        block: Block,
        tokens: Tensor,
        size: tuple[int, int],
        grains: Grains,
        valid: Tensor | None,
        flops_per_row: int,
        decided: Decided | None,
        is_last: bool,
    ) -> tuple[Tensor, Decided]:
        if decided is None:  # the first of a group
            decision = decide(block, tokens, grains, valid, flops_per_row)
            choice = None
            if decision is not None:
                choice = grains.choose(decision.choice, decision.shares)
            decided = Decided(decision, choice, None)
        if decided.choice is None:
            return self.run(block.update_all, tokens, size), decided
        tokens, rows = self.run(
            partial(update_chosen, block),
            tokens,
            decided.rows,
            grains,
            decided.choice,
            decided.decision.gate,
            self.sparse_training,
            is_last,
        )
        # Not by _replace, which a compiler can't follow after a graph break.
        decided = Decided(decided.decision, decided.choice, rows)
        return tokens, decided


class Decided(NamedTuple):
    """What the blocks of a group share.

    Attributes:
        decision (Decision | None): See :func:`decide`.
        choice (Choice | None): The same, ready to be carried out.
        rows (Tensor | None): The packed rows of the tokens that come in,
            ``(sum_b L_b, C)``; None: they are yet to be pooled.
    """

    decision: Decision | None
    choice: Choice | None
    rows: Tensor | None


def rows_and_shares(grains: Grains, decided: Decided) -> tuple[Tensor, Tensor]:
    """Rows of each image ``(B,)``, and each region's share ``(B, Rh, Rw)``.

    The share is that of the dense rows. Both have the gate's gradient.
    """
    decision, choice, _ = decided
    device = choice.counts.device
    shares = grains.shares(device)  # (K,)
    if decision.gate is None:
        return choice.counts, shares.take(decision.choice)
    gate = decision.gate.double()  # (B, Rh, Rw, K)
    num_rows = (gate * grains.row_counts(device)).flatten(1).sum(1)
    return grains.num_extra + num_rows, gate @ shares


def decide(
    block: Block,
    tokens: Tensor,
    grains: Grains,
    valid: Tensor | None,
    flops_per_row: int,
) -> Decision | None:
    """Choose a granularity for each region of ``tokens (B, E + N, C)``.

    ``valid`` are the regions that are no padding; a row costs
    ``flops_per_row`` in all blocks that share the decision. None: each token
    is a row.
    """
    grid = grains.to_map(tokens)  # (B, H, W, C)
    decision = None
    if block.router is not None:
        errors = CandidateErrors(block, tokens, grains, flops_per_row)
        decision = block.router(grid, valid, errors)
    if decision is None and grains.sides[0] > 1:
        finest = grid.new_zeros(len(grid), *grains.grids[-1], dtype=torch.long)
        shares = (1.0, *[0.0] * (len(grains.sides) - 1))
        decision = Decision(finest, None, shares)
    return decision


def update_chosen(
    block: Block,
    tokens: Tensor,
    rows: Tensor | None,
    grains: Grains,
    choice: Choice,
    gate: Tensor | None,
    sparse: bool,
    is_last: bool,
) -> tuple[Tensor, Tensor | None]:
    """Update each region of ``tokens (B, E + N, C)`` as was chosen.

    ``rows`` are those of the tokens, ``(sum_b L_b, C)``, if they are known.
    ``gate (B, Rh, Rw, K)`` is one-hot with a straight-through gradient;
    ``sparse`` gives it the gradient of the chosen candidate alone.

    Returns:
        tuple[Tensor, Tensor | None]: The tokens, and their rows if they are
        known and the block is not the last of its group. By one decision
        pooling is the inverse of un-pooling: rows of the tokens with the
        update un-pooled are the rows with the update. Not if a gate wants
        the gradient of that, or a block makes its rows of something else.
    """
    pool, unpool, lengths, *_ = choice
    base, source, context = block.prepare(tokens, grains.size)
    if rows is None or source is not tokens:
        rows = pool(grains.candidates(source))
    on_map = partial(grains.on_map, choice=choice)
    update = block.update(rows, lengths, context, on_map)
    if gate is None:
        out = unpool(update)
        stay = base is source is tokens and not is_last
        rows = add(rows, update, out=rows) if stay else None
        return add(base, out, out=out), rows
    if sparse:
        # Each token times the gate of its region: 1, but with a gradient.
        gate = grains.spread(gate).to(base.dtype)
        return base + unpool(update) * gate, None
    # Where the gate is 0 nothing but the gate gets a gradient: what the other
    # candidates would have done is needed, but no graph of it.
    with torch.no_grad():
        others = updates_of_all(block, source, context, grains)
    tokens = WithGate.apply(base + unpool(update), gate, others, grains)
    return tokens, None


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
        flops_per_row (int): Multiply-adds of a row, in all blocks that share
            the decision.
    """

    block: Block
    tokens: Tensor
    grains: Grains
    flops_per_row: int

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
