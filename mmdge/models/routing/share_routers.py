"""Routers with shares: *where* to compute, apart from *how much*.

A region has a rank in [0, 1) among regions, and fixed shares of the ranks get
each granularity, so that the budget is met by construction.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_world_size
from torch import Tensor, nn

from mmdge.registry import MODELS
from mmdge.utils import UserError, is_number

from ..cost import LinearCost
from .granularity import pool, region_variance
from .quantiles import (
    BELOW_ONE,
    rank_among_quantiles,
    rank_within_image,
    summarise,
)
from .router import Router, linear


class ShareRouter(Router):
    """Base of the routers that give fixed shares of ranked regions.

    Regions of padding, which a host adds to make a batch's images one size,
    get the cheapest candidate and don't count in the shares.

    Args:
        share (Sequence[float], optional): Share of the regions that gets each
            candidate, finest first, adding up to 1. Defaults to .35 finest,
            .40 coarsest, the rest evenly in between (.65 coarsest if there
            are but two).
        **kwargs: See :class:`Router`; ``temperature`` is in units of the rank
            and defaults to 0.1.
    """

    def __init__(
        self,
        embed_dims: int,
        cost: Sequence[float],
        cell: int,
        share: Sequence[float] | None = None,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            embed_dims, cost, cell, temperature=temperature, **kwargs
        )
        num = self.num_candidates
        share = default_share(num) if share is None else share
        if (
            not isinstance(share, Sequence)
            or len(share) != num
            or not all(is_number(part) and part >= 0 for part in share)
            or abs(sum(share) - 1) > 1e-5
        ):
            raise UserError(
                f'share={share!r} must give one non-negative number to each '
                f'of the {num} candidates and add up to 1.'
            )
        self.share = tuple(share)

    def ranks(self, x: Tensor, valid: Tensor) -> Tensor:
        """Rank ``(B, Rh, Rw)`` in [0, 1) of each region; 1 is finest."""
        raise NotImplementedError

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """Logits whose argmax cuts the ranks at the shares.

        Between two neighbours the difference of the logits is the rank minus
        the threshold; thresholds fall from finest to coarsest, so the argmax
        is the candidate whose interval holds the rank. Padding ranks lowest.
        """
        ranks = self.ranks(x, valid).where(valid, 0.0)
        logits = [torch.zeros_like(ranks)]
        for finer in list(accumulate(self.share))[:-1]:
            threshold = self.progress * (1 - finer)
            logits.append(logits[-1] + (threshold - ranks))
        return torch.stack(logits, dim=-1)


def default_share(num: int) -> tuple[float, ...]:
    """The share of each of ``num`` candidates if the user gives none."""
    if num == 1:
        return (1.0,)
    if num == 2:
        return (0.35, 0.65)
    return (0.35, *[0.25 / (num - 2)] * (num - 2), 0.4)


@MODELS.register_module()
class QuantileRouter(ShareRouter):
    """Rank regions by a score among all regions seen.

    Each block remembers the scores of its last training steps, summarised,
    in the checkpoint; a region's rank is its score's place among them. So an
    image with much detail gets more than one with little, and the shares
    hold over the data set. As long as there was no training step, a region
    is ranked among those of its own image: any static checkpoint can be used
    as it is, each image at the same ratio. Training and test decide alike.

    Args:
        score (str): ``'variance'``: the variance of the tokens inside the
            region, without parameters; or ``'learned'``: a linear function
            of that variance's logarithm and the normalised mean, which
            starts as the variance. Defaults to ``'variance'``.
        num_steps (int): Training steps remembered. Defaults to 128.
        **kwargs: See :class:`ShareRouter`.
    """

    _PER_STEP = 32  # scores that stand for a step
    _NUM_QUANTILES = 129  # of all that is remembered, to rank by

    def __init__(
        self,
        embed_dims: int,
        cost: Sequence[float],
        cell: int,
        score: str = 'variance',
        num_steps: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, cost, cell, **kwargs)
        if score not in ('variance', 'learned'):
            raise UserError(
                f"score must be 'variance' or 'learned', but got {score!r}."
            )
        if not isinstance(num_steps, Integral) or num_steps < 1:
            raise UserError(
                f'num_steps must be an integer of at least 1, but got '
                f'{num_steps!r}.'
            )
        self.rank_head = None
        if score == 'learned':
            self.rank_head = nn.Linear(embed_dims + 1, 1)
        self.register_buffer('history', torch.zeros(num_steps, self._PER_STEP))
        self.register_buffer('quantiles', torch.zeros(self._NUM_QUANTILES))
        self.register_buffer('num_updates', torch.tensor(0))
        self.register_buffer('history_region', torch.tensor(self.cell))
        self.register_load_state_dict_pre_hook(_forget_other_scores)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See :class:`Router`; a learned score starts as the variance.

        What was remembered is forgotten.
        """
        self.num_updates.zero_()
        if self.rank_head is not None:
            nn.init.zeros_(self.rank_head.weight)
            nn.init.zeros_(self.rank_head.bias)
            nn.init.ones_(self.rank_head.weight[:, -1:])

    def scores(self, x: Tensor) -> Tensor:
        """Score ``(B, Rh, Rw)`` of each region; a higher one is finer."""
        if self.rank_head is None:
            x = x.detach()
        spread = region_variance(x, self.cell).clamp(min=1e-8).log()
        if self.rank_head is None:
            return spread
        mean = pool(x, self.cell)
        inputs = [F.layer_norm(mean, mean.shape[-1:]), spread[..., None]]
        return linear(self.rank_head, torch.cat(inputs, -1)).squeeze(-1)

    def ranks(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`ShareRouter`."""
        scores = self.scores(x)
        known = self.num_updates > 0
        within = partial(rank_within_image, scores.detach(), valid)
        among = partial(
            rank_among_quantiles, scores, self.quantiles.to(scores.dtype)
        )
        if self.training or known.is_cuda or torch.compiler.is_compiling():
            # In training for the gradient, and a GPU would be waited for.
            ranks = torch.where(known, among(), within())
        else:
            ranks = among() if known else within()
        if self.training:
            self._remember(scores.detach().where(valid, math.nan))
        return ranks

    @torch.compiler.disable  # sizes decide how quantiles are found
    @torch.no_grad()
    def _remember(self, scores: Tensor) -> None:
        step = summarise(scores, self._PER_STEP)
        if get_world_size() > 1:
            step = summarise(torch.stack(all_gather(step)), self._PER_STEP)
        usable = step.isfinite().all()
        steps = torch.arange(len(self.history), device=scores.device)
        new = steps == self.num_updates % len(self.history)
        self.history.copy_(
            torch.where(
                (usable & new)[:, None],
                step.to(self.history.dtype),
                self.history,
            )
        )
        self.num_updates += usable
        known = self.history.float().where(
            (steps < self.num_updates)[:, None], math.nan
        )
        levels = torch.linspace(
            0, 1, len(self.quantiles), device=scores.device
        )
        self.quantiles.copy_(known.nanquantile(levels).nan_to_num())

    def flops(self) -> LinearCost:
        """See :class:`Router`."""
        if self.rank_head is None:
            return LinearCost(0, 0)
        return LinearCost(0, self.embed_dims + 1)


def _forget_other_scores(
    router: QuantileRouter, state_dict: dict, prefix: str, *args: Any
) -> None:
    """Drop what another kind of router remembers.

    That is one of other regions, of another ``num_steps``, or of a learned
    score where there is no head for it.
    """
    region = state_dict.get(f'{prefix}history_region', router.cell)
    history = state_dict.get(f'{prefix}history', router.history)
    learned = f'{prefix}rank_head.weight' in state_dict
    if (
        int(region) == router.cell
        and history.shape == router.history.shape
        and not (learned and router.rank_head is None)
    ):
        return
    # A warning, not a log line: Python shows the many blocks' as one.
    warnings.warn(
        'the checkpoint remembers the scores of another kind of router; '
        'until it is trained, this one ranks the regions of each image by '
        'themselves.',
        stacklevel=1,
    )
    for name, buffer in router.named_buffers():
        if f'{prefix}{name}' in state_dict:
            state_dict[f'{prefix}{name}'] = buffer.clone()
    state_dict[f'{prefix}num_updates'] = torch.zeros_like(router.num_updates)


@MODELS.register_module()
class RandomRouter(ShareRouter):
    """Control: random ranks, anew in every forward."""

    def ranks(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`ShareRouter`."""
        ranks = torch.rand(valid.shape, device=x.device)
        return ranks.clamp(max=BELOW_ONE)


@MODELS.register_module()
class UniformRouter(ShareRouter):
    """Control: an even pattern, the same for every image by design.

    The ranks are a two-dimensional low-discrepancy sequence, so that each
    neighbourhood holds all candidates in their shares.
    """

    adaptive = False

    def ranks(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`ShareRouter`."""
        rows, columns = (
            torch.arange(side, device=x.device) for side in valid.shape[1:]
        )
        # 1 / p and 1 / p^2 for the plastic number p, which solves p^3 = p + 1
        ranks = (rows[:, None] * 0.7548776662 + columns * 0.5698402910) % 1
        return ranks.clamp(max=BELOW_ONE).expand(len(x), -1, -1)
