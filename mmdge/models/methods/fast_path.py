"""DSS: dynamic spatial sparsification, with a fast path for what matters less.

Tokens mix as in the static block, for all of them; only the MLP is dear, and
unimportant tokens take a linear layer in its place. Before some blocks of the
third stage a predictor scores all tokens anew::

    tokens --predictor--> log-probabilities of slow and fast      score
    --top-k per image, or a price--> tokens of either path        decide
    --block.prepare, pack--> rows of either path                  rows
    --block.update, or fast path--> updates                       update
    updates, side by side --> the map                             scatter
    FLOPs of both, share of each token                            cost

Training gives the predictors a gradient by two streams: one takes the slow
path everywhere, the other the fast one, and what the tokens are is merged
from both, by the decision. At a token that a later predictor takes up again,
the slow stream goes on; at test there is no such stream, and the token is
what the fast path made of it. That is the official code's way.

Source: Dynamic Spatial Sparsification (Rao et al., T-PAMI 2023), and its
official code.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmdge.utils import UserError, is_number

from ..cost import ComputeMap, Cost
from ..layers import Block, add
from ..layers.transformer import LayerScale
from ..routing.rows import Rows, pack, select
from .token_decisions import TokenDecisions

STAGE = 2  # which has most of the blocks
STEP = 0.2  # by which each predictor keeps less than the one before


class LinearPath(nn.Module):
    """Norm and a linear layer, in the place of an MLP.

    Args:
        embed_dims (int): Channels ``C``.
        eps (float): Of the norm. Defaults to 1e-5.
        layer_scale_init_value (float): See :class:`LayerScale`; 0: none.
            Defaults to 0.
    """

    def __init__(
        self,
        embed_dims: int,
        eps: float = 1e-5,
        layer_scale_init_value: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.norm = nn.LayerNorm(embed_dims, eps=eps)
        self.fc = nn.Linear(embed_dims, embed_dims)
        self.init_value, self.ls = layer_scale_init_value, nn.Identity()
        if layer_scale_init_value:
            self.ls = LayerScale(embed_dims, layer_scale_init_value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the official code does."""
        self.norm.reset_parameters()
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)
        for gamma in self.ls.parameters():
            nn.init.constant_(gamma, self.init_value)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows ``(L, C)`` to their updates ``(L, C)``."""
        return self.ls(self.fc(self.norm(x)))

    def flops(self) -> int:
        """Multiply-adds of a row."""
        return self.embed_dims**2


class FastPath(TokenDecisions):
    """Gives the MLPs of a stage a fast path, on any architecture.

    Attributes:
        fast_cost (float): Of a row on the fast path, in units of the MLP's.
    """

    def add_fast_paths(
        self,
        keep_ratio: float | Sequence[float],
        pruning_loc: Sequence[int] | None,
        routing: str,
        amount: str,
        price: float,
        eps: float = 1e-5,
        layer_scale_init_value: float = 0.0,
    ) -> None:
        """Place predictors and fast paths.

        Args:
            keep_ratio (float | Sequence[float]): See
                :class:`mmdge.DynamicSwin`, also for the following.
            pruning_loc (Sequence[int], optional): See there.
            routing (str): See there.
            amount (str): See there.
            price (float): See there.
            eps (float): Of all norms. Defaults to 1e-5.
            layer_scale_init_value (float): See :class:`LinearPath`.
        """
        if len(self.stages) <= STAGE:
            raise UserError(
                f'out_indices={self.out_indices} leave out the stage '
                f'{STAGE}, which is the one that is routed.'
            )
        blocks = self.stages[STAGE]
        if pruning_loc is None:
            step = max(1, len(blocks) // 9)
            pruning_loc = range(len(blocks))[step : 4 * step : step]
        ratios = keep_ratio
        if is_number(keep_ratio):
            ratios = [keep_ratio - STEP * s for s in range(len(pruning_loc))]
            if ratios and ratios[-1] <= 0:
                raise UserError(
                    f'keep_ratio={keep_ratio} leaves nothing to the last of '
                    f'{len(ratios)} predictors, each of which keeps {STEP} '
                    'less than the one before; give a list of their ratios.'
                )
        self.cells = [1] * self.max_stages
        fast = LinearPath(blocks[0].embed_dims).flops()
        self.fast_cost = fast / blocks[0].flops((1, 1), 0).per_row
        self.place_predictors(
            *(blocks, pruning_loc, ratios, routing, amount, price),
            cost=(1.0, self.fast_cost),
            eps=eps,
        )
        if not self.score_predictor:
            return
        for block in blocks[pruning_loc[0] :]:
            block.fast_path = LinearPath(
                block.embed_dims, eps, layer_scale_init_value
            )
        if self.frozen_stages > STAGE:
            self.score_predictor.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def new_parts(self) -> dict[str, nn.Module]:
        """See :class:`Backbone`."""
        return super().new_parts() | {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, LinearPath)
        }

    def run_blocks(
        self,
        stage: int,
        tokens: Tensor,
        size: tuple[int, int],
        mask: Tensor | None,
        keep: Collection[int],
    ) -> tuple[list[Tensor], Cost]:
        """See :class:`Backbone`."""
        if self.dense or stage != STAGE or not self.score_predictor:
            return super().run_blocks(stage, tokens, size, mask, keep)
        valid = self.valid_cells(mask, stage, size)  # (B, H, W)
        predictors = iter(self.score_predictor)
        exact = torch.promote_types(tokens.dtype, torch.float32)
        everywhere = tokens.new_ones(tokens.shape[:2], dtype=exact)
        kept = paths = fast = None  # what tokens take which path; 2nd stream
        outs, maps, dynamic, dense = [], [], 0, 0
        for number, block in enumerate(self.stages[stage]):
            ratio = self.keep_ratios.get(number)
            if ratio is not None:
                router = next(predictors)
                merged = tokens if fast is None else merge(tokens, fast, kept)
                num = math.prod(size)
                num_slow = self.fixed_count(router, ratio, num, num)
                counts = None if num_slow is None else (num, num_slow)
                kept, num_scored = self.decide_tokens(
                    *(router, merged, everywhere, valid, size, ratio),
                    reactivate=True,
                    counts=counts,
                )
                dynamic = dynamic + router.flops().at(num_scored.double())
                if kept.requires_grad:
                    fast = tokens if fast is None else fast
                else:
                    tokens, fast = merged, None
                    paths = Paths(kept > 0, num_slow)
                share = kept + (1 - kept) * self.fast_cost  # (B, N)
                target = ratio + (1 - ratio) * self.fast_cost
                maps.append(
                    ComputeMap(
                        share.unflatten(1, size),
                        self.strides[stage],
                        block.name,
                        valid,
                        target if self.learns else None,
                    )
                )
            if kept is None:
                tokens = self.run(block, tokens, size)
            elif fast is None:
                body = partial(self._either, paths=paths)
                tokens = block(tokens, size, body)
            else:
                body = partial(self._both, fast=fast, kept=kept)
                tokens, fast = block(tokens, size, body)
            if number in keep:
                out = tokens if fast is None else merge(tokens, fast, kept)
                outs.append(out)
            flops = block.flops(size, 0)
            dense = dense + flops.at(tokens.shape[1])
            slow = everywhere if kept is None else kept
            dynamic = dynamic + flops.at(slow.double().sum(1))
            if kept is not None:
                skipped = (1 - slow.double()).sum(1)
                dynamic = dynamic + block.fast_path.flops() * skipped
        cost = Cost.constant(dense, len(tokens), tokens.device)
        return outs, Cost(dynamic, cost.dense, tuple(maps))

    def _either(
        self,
        block: Block,
        tokens: Tensor,
        size: tuple[int, int],
        paths: Paths,
    ) -> Tensor:
        """Update each token by the path that it takes."""

        def update(tokens: Tensor) -> Tensor:
            base, source, context = block.prepare(tokens, size)
            slow, fast = (pack([source], [rows]) for rows in paths.rows)
            updates = [
                block.update(slow, paths.rows[0].lengths, context),
                fast_update(block, fast, paths.rows[1].lengths),
            ]
            # (B * N, C), slow rows first -> (B, N, C)
            update = torch.cat(updates).index_select(0, paths.places)
            update = update.view_as(base)
            return add(base, update, out=update)

        return self.run(update, tokens)

    def _both(
        self,
        block: Block,
        tokens: Tensor,
        size: tuple[int, int],
        fast: Tensor,
        kept: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Update both streams ``(B, N, C)``, by both paths everywhere."""

        def update(
            slow: Tensor, fast: Tensor, kept: Tensor
        ) -> tuple[Tensor, Tensor]:
            merged = merge(slow, fast, kept)
            base, source, context = block.prepare(merged, size)
            lengths = [slow.shape[1]] * len(slow)
            slow_rows = merge(source, slow, kept).flatten(0, 1)
            fast_rows = merge(fast, source, kept).flatten(0, 1)
            updates = (
                block.update(slow_rows, lengths, context),
                fast_update(block, fast_rows, lengths),
            )
            # Where a block adds to its input, a stream adds to its own.
            bases = (slow, fast) if base is merged else (base, base)
            return tuple(
                base + update.view_as(base)
                for base, update in zip(bases, updates, strict=True)
            )

        return self.run(update, tokens, fast, kept)


class Paths:
    """Which tokens take which path, for the blocks up to the next decision.

    Args:
        kept (Tensor): On the slow one, ``(B, N)``, bool.
        num_slow (int, optional): How many of every image are, where that is
            known beforehand.

    Attributes:
        rows (list[Rows]): The slow rows, the fast ones.
        places (Tensor): Of each token among all slow and then all fast rows,
            ``(B * N,)``.
    """

    def __init__(self, kept: Tensor, num_slow: int | None = None) -> None:
        lengths = None
        if num_slow is not None:
            counts = num_slow, kept.shape[1] - num_slow
            lengths = [[num] * len(kept) for num in counts]
        self.rows: list[Rows] = select(kept, ~kept, lengths=lengths)
        slow, fast = (mask.flatten().cumsum(0) - 1 for mask in (kept, ~kept))
        num_slow = sum(self.rows[0].lengths)
        self.places = slow.where(kept.flatten(), fast + num_slow)


def fast_update(block: Block, rows: Tensor, lengths: list[int]) -> Tensor:
    """What the fast path adds to packed rows ``(sum_b L_b, C)``."""
    update = block.fast_path(rows)
    factor = block.drop_path.draw(len(lengths), update)
    return block.drop_path(update, factor, lengths)


def merge(slow: Tensor, fast: Tensor, kept: Tensor) -> Tensor:
    """``slow`` where ``kept (B, N)`` is 1, else ``fast``, ``(B, N, C)``."""
    gate = kept[..., None].to(slow.dtype)
    return gate * slow + (1 - gate) * fast
