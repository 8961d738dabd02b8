"""Mixed granularity: a region is all of its tokens, or one for all of them.

That is decided once, so it costs nothing per block, and all that follows,
keys and values too, runs on the packed rows alone::

    tokens --router--> choice                        score, decide
    tokens and coarse tokens --pack--> rows          rows
    rows --block, block, block--> rows               update
    rows --copy--> the map                           scatter
    FLOPs of the rows, share of each region          cost

:class:`MixedPatches` takes coarse tokens from the half-size image, before the
first block: fine and coarse ones are patches such as a ViT has seen in
training, and 2 x 2 places of a smaller image. Sources of the idea: CF-ViT
(Chen et al., AAAI 2023), APT (arXiv 2510.18091).

:class:`Merging` averages tokens that some blocks have updated already; a mean
of four weighs four times in attention. Source of the idea: ToMe (Bolya et
al., ICLR 2023), section 3, with fixed partners as in CTS (Lu et al., CVPR
2023).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from numbers import Integral
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import ComputeMap, Cost
from ..layers.transformer import packed_attention
from ..routing import Decision, ErrorRouter, Grains, build_router
from ..routing.granularity import Choice, Size, patch_grid, pool, unpool
from .base import Method

SIDES = (1, 2)  # of a patch in tokens


class Candidates(NamedTuple):
    """What a decision is between.

    Attributes:
        fine (Tensor): All tokens, ``(B, E + N, C)``.
        coarse (Tensor): One for each region, ``(B, R, C)``.
        seen (Tensor): What the router looks at, ``(B, H, W, D)``.
        flops (int): Multiply-adds that the coarse ones of an image cost.
    """

    fine: Tensor
    coarse: Tensor
    seen: Tensor
    flops: int


class Mixed(NamedTuple):
    """What blocks made of a mixed sequence.

    Attributes:
        outs (list[Tensor]): Of the blocks whose output is wanted, packed
            rows ``(sum_b L_b, C)``.
        choice (Choice): The way back to tokens, ``(B, E + N, C)``.
    """

    outs: list[Tensor]
    choice: Choice


class MixedSequence(Method):
    """Base of the methods whose blocks run on fine and coarse tokens.

    For architectures of one stage, which have ``embed`` and ``patch_embed``.

    Attributes:
        proportional (bool): Whether a coarse token weighs in attention as
            much as the tokens that it stands for.
    """

    cells = [SIDES[-1]]
    proportional = False

    def check_one_set(self) -> None:
        """Raise a UserError unless one stage keeps all tokens."""
        if len(self.stages) > 1 or self.stages[0][0].attn.sr_ratio > 1:
            raise UserError(
                'regions can be decided on once only where one stage keeps '
                f'all tokens, but {type(self).__name__} reduces their map.'
            )

    def whole_regions(self, x: Tensor) -> tuple[Tensor, Size]:
        """Complete images ``(B, C_in, H, W)`` to whole regions, by zeros.

        Returns:
            tuple[Tensor, tuple[int, int]]: Those; rows and columns of regions.
        """
        side = SIDES[-1] * self.patch_size
        grid = patch_grid(x.shape[2:], side)
        bottom, right = (
            side * num - own
            for num, own in zip(grid, x.shape[2:], strict=True)
        )
        return F.pad(x, (0, right, 0, bottom)), grid

    def run_mixed(
        self,
        fine: Tensor,
        coarse: Tensor,
        chosen: Tensor,
        grains: Grains,
        keep: Collection[int],
        first: int = 0,
        shares: Sequence[float] | None = None,
    ) -> Mixed:
        """Run blocks on the mixed sequence.

        Args:
            fine (Tensor): All tokens, ``(B, E + N, C)``.
            coarse (Tensor): One for each region, ``(B, R, C)``.
            chosen (Tensor): 0 for the tokens of a region, 1 for its one,
                ``(B, Rh, Rw)``.
            grains (Grains): Of their map.
            keep (Collection[int]): Blocks whose output is wanted; those
                after the last don't run.
            first (int): The block to begin with. Defaults to 0.
            shares (Sequence[float], optional): See :class:`Decision`.
        """
        choice = grains.choose(chosen, shares)
        rows, attend = choice.pool((fine, coarse)), packed_attention
        if self.proportional:
            weights = choice.pool(grains.log_sizes(fine))[:, 0]
            attend = partial(packed_attention, key_bias=weights)
        body = partial(
            self.update_packed, lengths=choice.lengths, attend=attend
        )
        outs = []
        last = max(keep, default=-1)
        for number, block in enumerate(
            self.stages[0][first : last + 1], first
        ):
            rows = block(rows, grains.size, body)
            if number in keep:
                outs.append(rows)
        return Mixed(outs, choice)

    def mixed_flops(
        self, num_rows: Tensor, num_extra: int, first: int = 0
    ) -> Tensor:
        """Multiply-adds of the blocks from ``first`` on.

        Of each image, ``(B,)`` float64, by its rows ``num_rows (B,)``.
        """
        num_rows, flops = num_rows.double(), 0
        for block in self.stages[0][first:]:
            cost = block.flops((num_rows - num_extra, 1), num_extra)
            flops = flops + cost.at(num_rows)
        return flops


class Mixing(MixedSequence):
    """Base of the methods that decide once.

    Attributes:
        router (Router | None): Of all regions.
        location (int): The block before which it decides.
    """

    def add_router(
        self, routing: str | dict, price: float, location: int, channels: int
    ) -> None:
        """Place the router.

        Args:
            routing (str | dict): See :class:`mmdge.MixedPatchViT`.
            price (float): See there.
            location (int): The block before which it decides.
            channels (int): Of the map that it looks at.
        """
        self.check_one_set()
        depth = len(self.stages[0])
        if not isinstance(location, Integral) or not 0 <= location < depth:
            raise UserError(
                f'merging_loc={location!r} must be a block, 0 to {depth - 1}.'
            )
        self.location = location
        cost = [side**-2 for side in SIDES]
        self.router = build_router(routing, channels, cost, SIDES[-1], price)
        if isinstance(self.router, ErrorRouter):
            raise UserError(
                f'routing={routing!r} is for errors of single blocks; a '
                "method that decides once has 'effect'."
            )
        if self.router is not None and [*self.router.parameters()]:
            raise UserError(
                f'routing={routing!r} learns by gradient, of which a choice '
                "between tokens has none; use 'effect', calibrated by "
                "make_dynamic.py, or 'variance'."
            )

    def candidates(self, tokens: Tensor, size: tuple[int, int]) -> Candidates:
        """From what ``embed``, or the block before, gave ``(B, T, C)``."""
        raise NotImplementedError

    def deciding_parts(self) -> list[nn.Module | nn.Parameter]:
        """See :class:`Backbone`: the embedding, and the blocks before."""
        embedding = self.patch_embed, *self.parameters(recurse=False)
        return [*embedding, *self.stages[0][: self.location]]

    def ratios(self, x: Tensor) -> Tensor:
        """See :class:`Backbone`; no block runs after the decision."""
        tokens, size = self.embed(x)
        _, cost = self.run_blocks(0, tokens, size, self.valid_mask(x), ())
        embedding = self.patch_embed.flops(size)
        return (embedding + cost.dynamic) / (embedding + cost.dense)

    def run_blocks(
        self,
        stage: int,
        tokens: Tensor,
        size: tuple[int, int],
        mask: Tensor | None,
        keep: Collection[int],
    ) -> tuple[list[Tensor], Cost]:
        """See :class:`Backbone`."""
        if self.dense or self.router is None:
            return super().run_blocks(stage, tokens, size, mask, keep)
        blocks, outs, dynamic = self.stages[stage], [], 0
        for number, block in enumerate(blocks[: self.location]):
            num_extra = tokens.shape[1] - math.prod(size)
            dynamic += block.flops(size, num_extra).at(tokens.shape[1])
            tokens = self.run(block, tokens, size)
            if number in keep:
                outs.append(tokens)
        fine, coarse, seen, flops = self.candidates(tokens, size)
        num_extra = fine.shape[1] - math.prod(size)
        grains = Grains(size, SIDES, num_extra)
        valid = self.valid_cells(mask, stage, grains.grids[-1])
        decision = self.router(seen, valid)
        if decision is None:  # before a warm-up: all are fine
            chosen = seen.new_zeros(len(fine), *grains.grids[-1]).long()
            decision = Decision(chosen, None, (1.0, 0.0))
        chosen = decision.choice
        mixed = self.run_mixed(
            fine, coarse, chosen, grains, keep, self.location, decision.shares
        )
        outs += map(mixed.choice.unpool, mixed.outs)
        num_cells = chosen[0].numel()
        dynamic = dynamic + flops + self.router.flops().at(num_cells)
        dynamic = dynamic + self.mixed_flops(
            mixed.choice.counts, num_extra, self.location
        )
        dense = sum(
            block.flops(size, num_extra).at(fine.shape[1]) for block in blocks
        )
        cost = Cost.constant(dense, len(fine), fine.device)
        decided = ComputeMap(
            grains.shares(fine.device)[chosen],
            self.strides[stage] * SIDES[-1],
            blocks[self.location].name,
            valid,
        )
        return outs, Cost(dynamic, cost.dense, (decided,))


class MixedPatches(Mixing):
    """Coarse tokens are those of the half-size image, from the start."""

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Fine tokens, as the architecture's, and after them the coarse.

        Returns:
            tuple[Tensor, tuple[int, int]]: ``(B, E + N + R, C)``, the size of
            the fine tokens' map.
        """
        tokens, size = super().embed(x)
        if self.dense or self.router is None:
            return tokens, size
        whole, grid = self.whole_regions(x)
        coarse, _ = super().embed(F.avg_pool2d(whole, SIDES[-1]))
        num_extra = coarse.shape[1] - math.prod(grid)
        return torch.cat([tokens, coarse[:, num_extra:]], 1), size

    def candidates(self, tokens: Tensor, size: tuple[int, int]) -> Candidates:
        """See :class:`Mixing`; the router sees both kinds of tokens."""
        grid = patch_grid(size, SIDES[-1])
        fine, coarse = tokens.split(
            [tokens.shape[1] - math.prod(grid), math.prod(grid)], dim=1
        )
        copied = unpool(coarse.unflatten(1, grid), SIDES[-1], size)
        num_extra = fine.shape[1] - math.prod(size)
        own = fine[:, num_extra:].unflatten(1, size)
        return Candidates(
            fine,
            coarse,
            torch.cat([own, copied], -1),  # (B, H, W, 2C)
            self.patch_embed.flops(grid),
        )


class Merging(Mixing):
    """A coarse token is the mean of its region's."""

    proportional = True

    def candidates(self, tokens: Tensor, size: tuple[int, int]) -> Candidates:
        """See :class:`Mixing`; the router sees the tokens."""
        num_extra = tokens.shape[1] - math.prod(size)
        seen = tokens[:, num_extra:].unflatten(1, size)  # (B, H, W, C)
        coarse = pool(seen, SIDES[-1]).flatten(1, 2)  # (B, R, C)
        return Candidates(tokens, coarse, seen, 0)
