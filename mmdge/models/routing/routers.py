"""Routers: which granularity does each region get?

Every router gives one logit per region and candidate, finest first; the
decision is the same for all of them: ``argmax(logit_k - price * cost_k)``.
What differs is where the logits come from:

- :class:`GumbelRouter` (``routing='learned'``): the paper's form, a linear
  layer on the region's mean; noise in training, the amount learned through
  the budget loss. Official weights need it.
- the others keep *where* apart from *how much*: a region has a rank in
  [0, 1) among regions, and fixed shares of the ranks get each granularity,
  so that the budget is met by construction. :class:`QuantileRouter` ranks by
  the variance of the tokens inside the region (``'variance'``) or by a
  learned score; :class:`RandomRouter` (``'random'``) and
  :class:`UniformRouter` (``'uniform'``) are the controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmdge.registry import MODELS

from ..cost import LinearCost
from .grains import pool, region_variance


class Decision(NamedTuple):
    """What a router decided for a batch.

    Attributes:
        choice (Tensor): Index of the candidate, ``(B, Rh, Rw)``, long.
        gate (Tensor): The same one-hot, ``(B, Rh, Rw, K)``, float32. In
            training it carries the straight-through gradient of a router
            that has parameters.
    """

    choice: Tensor
    gate: Tensor


class Router(nn.Module):
    """Base of all routers: logits to a decision.

    Args:
        embed_dims (int): Channels ``C`` of the tokens.
        granularities (Sequence[int]): ``K`` candidates, finest first.
        price (float): Shifts the choice at test time: ``argmax(logit_k -
            price * cost_k)``, ``cost_k`` being the queries of candidate k
            relative to the finest one's. 0, the default, is the router as it
            was trained; a higher price gives coarser regions.
        temperature (float): Of the softmax whose gradient the gate passes on.
    """

    def __init__(
        self,
        embed_dims: int,
        granularities: Sequence[int],
        price: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.granularities = tuple(granularities)
        self.price = price
        self.temperature = temperature
        self.train_progress = 1.0
        cost = [(self.granularities[0] / g) ** 2 for g in self.granularities]
        self.register_buffer('cost', torch.tensor(cost), persistent=False)

    @property
    def region(self) -> int:
        """Side of a region in tokens."""
        return self.granularities[-1]

    @property
    def progress(self) -> float:
        """0: every region finest; 1: the router's own choice.

        Only training warms up, so that an evaluation, during training or of
        its checkpoint, always shows the router's own choice.
        """
        return self.train_progress if self.training else 1.0

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``(B, Rh, Rw, K)`` of a float32 map ``(B, H, W, C)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Decision | None:
        """Decide for a token map ``(B, H, W, C)``, never in half precision.

        Returns:
            Decision | None: None if every region is finest and no gradient
            is wanted, so that the block may run without routing.
        """
        with torch.autocast(x.device.type, enabled=False):
            # Half precision is too coarse for thresholds and noise.
            logits = self.logits(x.float() if x.dtype.itemsize < 4 else x)
            if self.progress == 0 and not logits.requires_grad:
                return None
            if not self.training and self.price:
                logits = logits - self.price * self.cost
            choice = logits.argmax(-1)
            gate = F.one_hot(choice, len(self.cost)).to(logits.dtype)
            if logits.requires_grad:
                soft = (logits / self.temperature).softmax(-1)
                gate = gate - soft.detach() + soft
        return Decision(choice, gate)

    def flops(self) -> LinearCost:
        """Multiply-adds per region (none without a linear layer)."""
        return LinearCost(0, 0)

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f'granularities={self.granularities}, price={self.price}'


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply ``layer`` in the precision of ``x``, whatever its own."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


@MODELS.register_module()
class GumbelRouter(Router):
    """The paper's router: region mean, linear layer, Gumbel noise.

    Source: DGE (NeurIPS 2021), section 3.2. The weights start so that the
    finest candidate has the probability ``init_finest``.

    Args:
        noise (bool): Add Gumbel noise in training. Defaults to True.
        init_finest (float): In (0, 1). Defaults to 0.95.
        **kwargs: See :class:`Router`; ``temperature`` defaults to 1.
    """

    def __init__(
        self,
        embed_dims: int,
        granularities: Sequence[int],
        noise: bool = True,
        init_finest: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, granularities, **kwargs)
        if not 0 < init_finest < 1:
            raise ValueError(
                f'init_finest must be in (0, 1), but got {init_finest}.'
            )
        self.noise = noise
        num = len(self.granularities)
        self.gate = nn.Linear(embed_dims, num)
        nn.init.trunc_normal_(self.gate.weight, std=0.01)
        # softmax of (+b, -b, ..., -b) is init_finest for the first one
        odds = init_finest * (num - 1) / (1 - init_finest)
        bias = 0.5 * math.log(odds) if num > 1 else 0.0
        with torch.no_grad():
            self.gate.bias.fill_(-bias)
            self.gate.bias[0] = bias

    def logits(self, x: Tensor) -> Tensor:
        """See :class:`Router`."""
        logits = _linear(self.gate, pool(x, self.region))  # (B, Rh, Rw, K)
        if self.training and self.noise:
            exponential = torch.empty_like(logits).exponential_()
            logits = logits - exponential.clamp(min=1e-30).log()
        return logits

    def flops(self) -> LinearCost:
        """See :class:`Router`."""
        return LinearCost(0, self.gate.weight.numel())


class ShareRouter(Router):
    """Base of the routers that give fixed shares of ranked regions.

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
        granularities: Sequence[int],
        share: Sequence[float] | None = None,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            embed_dims, granularities, temperature=temperature, **kwargs
        )
        num = len(self.granularities)
        share = default_share(num) if share is None else tuple(share)
        if len(share) != num or min(share) < 0 or abs(sum(share) - 1) > 1e-6:
            raise ValueError(
                f'share={share} must give one non-negative number to each of '
                f'granularities={self.granularities} and add up to 1.'
            )
        self.share = share

    def ranks(self, x: Tensor) -> Tensor:
        """Rank ``(B, Rh, Rw)`` in [0, 1) of each region; 1 is finest."""
        raise NotImplementedError

    def logits(self, x: Tensor) -> Tensor:
        """Logits whose argmax cuts the ranks at the shares.

        Between two neighbours the difference of the logits is the rank minus
        the threshold; thresholds fall from finest to coarsest, so the argmax
        is the candidate whose interval holds the rank.
        """
        finer = torch.tensor(self.share, device=x.device).cumsum(0)[:-1]
        threshold = self.progress * (1 - finer)  # (K - 1,)
        margin = threshold - self.ranks(x)[..., None]
        return F.pad(margin.cumsum(-1), (1, 0))

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f'{super().extra_repr()}, share={self.share}'


def default_share(num: int) -> tuple[float, ...]:
    """The share of each of ``num`` candidates if the user gives none."""
    if num == 1:
        return (1.0,)
    if num == 2:
        return (0.35, 0.65)
    return (0.35, *[0.25 / (num - 2)] * (num - 2), 0.4)


# A rank of exactly 1 would sit on the threshold of a share of 0.
_BELOW_ONE = 1 - 1e-6


@MODELS.register_module()
class QuantileRouter(ShareRouter):
    """Rank regions by a score among all regions seen.

    The distribution of a block's scores is kept as running quantiles, in the
    checkpoint; a region's rank is its score's place among them. So an image
    with much detail gets more than one with little, and the shares hold over
    the data set. As long as no training step has updated the quantiles, a
    region is ranked among those of its own image: any static checkpoint can
    be used as it is, each image at the same ratio.

    Training and test decide alike, by the running quantiles; an image's
    routing never depends on the others in its batch.

    Args:
        score (str): ``'variance'``: the variance of the tokens inside the
            region, without parameters; or ``'learned'``: a linear function
            of the logarithm of that variance and the normalised mean, which
            starts as the variance. Defaults to ``'variance'``.
        momentum (float): Of the running quantiles. Defaults to 0.05.
        num_quantiles (int): Quantiles kept, evenly spaced. Defaults to 65.
        **kwargs: See :class:`ShareRouter`.
    """

    def __init__(
        self,
        embed_dims: int,
        granularities: Sequence[int],
        score: str = 'variance',
        momentum: float = 0.05,
        num_quantiles: int = 65,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, granularities, **kwargs)
        if score not in ('variance', 'learned'):
            raise ValueError(
                f"score must be 'variance' or 'learned', but got {score!r}."
            )
        self.momentum = momentum
        self.rank_head = None
        if score == 'learned':
            self.rank_head = nn.Linear(embed_dims + 1, 1)
            nn.init.zeros_(self.rank_head.weight)
            nn.init.zeros_(self.rank_head.bias)
            nn.init.ones_(self.rank_head.weight[:, -1:])
        self.register_buffer('quantiles', torch.zeros(num_quantiles))
        self.register_buffer('num_updates', torch.tensor(0))

    def scores(self, x: Tensor) -> Tensor:
        """Score ``(B, Rh, Rw)`` of each region; a higher one is finer."""
        if self.rank_head is None:
            return region_variance(x.detach(), self.region)
        spread = region_variance(x, self.region)
        mean = pool(x, self.region)
        inputs = [
            F.layer_norm(mean, mean.shape[-1:]),
            spread.add(1e-6).log()[..., None],
        ]
        return _linear(self.rank_head, torch.cat(inputs, -1)).squeeze(-1)

    def ranks(self, x: Tensor) -> Tensor:
        """See :class:`ShareRouter`."""
        scores = self.scores(x)
        ranks = torch.where(
            self.num_updates > 0,
            rank_among_quantiles(scores, self.quantiles),
            rank_within_image(scores),
        )
        if self.training:
            self._update(scores.detach())
        return ranks

    @torch.no_grad()
    def _update(self, scores: Tensor) -> None:
        levels = torch.linspace(
            0, 1, len(self.quantiles), device=scores.device
        )
        # An infinite or undefined score says nothing about the others.
        finite = scores.where(scores.isfinite(), scores.new_tensor(math.nan))
        batch = torch.nanquantile(finite.flatten(), levels)
        all_reduce(batch, 'mean')
        # A plain average at first, so that the first batches count alike.
        weight = (1 / (self.num_updates + 1)).clamp(min=self.momentum)
        usable = batch.isfinite().all()
        new = self.quantiles.lerp(batch, weight)
        self.quantiles.copy_(torch.where(usable, new, self.quantiles))
        self.num_updates += usable

    def flops(self) -> LinearCost:
        """See :class:`Router`."""
        if self.rank_head is None:
            return LinearCost(0, 0)
        return LinearCost(0, self.rank_head.weight.numel())


def rank_among_quantiles(scores: Tensor, quantiles: Tensor) -> Tensor:
    """Place of each score in a distribution, interpolated.

    Args:
        scores (Tensor): Any shape.
        quantiles (Tensor): Ascending, evenly spaced from the minimum to the
            maximum, ``(Q,)``.

    Returns:
        Tensor: In [0, 1), differentiable with respect to the scores.
    """
    last = len(quantiles) - 1
    upper = torch.searchsorted(quantiles, scores.detach().contiguous())
    upper = upper.clamp(1, last)
    low, high = quantiles[upper - 1], quantiles[upper]
    step = (scores - low) / (high - low).clamp(min=1e-12)
    ranks = (upper - 1 + step.clamp(0, 1)) / last
    return ranks.nan_to_num(_BELOW_ONE).clamp(max=_BELOW_ONE)


def rank_within_image(scores: Tensor) -> Tensor:
    """Place of each region among those of its image, ``(B, Rh, Rw)``.

    Returns:
        Tensor: The middles of ``Rh * Rw`` even steps in [0, 1).
    """
    flat = scores.flatten(1)
    order = flat.argsort(1).argsort(1)
    return ((order + 0.5) / flat.shape[1]).view_as(scores)


@MODELS.register_module()
class RandomRouter(ShareRouter):
    """Control: random ranks, anew in every forward."""

    def ranks(self, x: Tensor) -> Tensor:
        """See :class:`ShareRouter`."""
        size = [-(-side // self.region) for side in x.shape[1:3]]
        return torch.rand(len(x), *size, device=x.device).clamp(max=_BELOW_ONE)


@MODELS.register_module()
class UniformRouter(ShareRouter):
    """Control: an even pattern, the same for every image.

    The ranks are a two-dimensional low-discrepancy sequence, so that each
    neighbourhood holds all granularities in their shares.
    """

    def ranks(self, x: Tensor) -> Tensor:
        """See :class:`ShareRouter`."""
        rows, columns = (
            torch.arange(-(-side // self.region), device=x.device)
            for side in x.shape[1:3]
        )
        # 1 / p and 1 / p^2 for the plastic number p, which solves p^3 = p + 1
        ranks = (rows[:, None] * 0.7548776662 + columns * 0.5698402910) % 1
        return ranks.clamp(max=_BELOW_ONE).expand(len(x), -1, -1)


ROUTINGS = {
    'learned': dict(type='GumbelRouter'),
    'variance': dict(type='QuantileRouter', score='variance'),
    'random': dict(type='RandomRouter'),
    'uniform': dict(type='UniformRouter'),
}


def build_router(
    routing: str | dict,
    embed_dims: int,
    granularities: Sequence[int],
    price: float = 0.0,
) -> Router | None:
    """Build a block's router.

    Args:
        routing (str | dict): ``'learned'``, ``'variance'``, ``'random'``,
            ``'uniform'``, ``'finest'``, or the config of a registered router.
        embed_dims (int): Channels of the tokens.
        granularities (Sequence[int]): Candidates, finest first.
        price (float): See :class:`Router`. Defaults to 0.

    Returns:
        Router | None: None if there is nothing to route: every token is its
        own query, as in the static backbone.
    """
    if routing == 'finest' or len(granularities) == 1:
        if granularities[0] == 1:
            return None
        finest = [1.0] + [0.0] * (len(granularities) - 1)
        routing = dict(type='UniformRouter', share=finest)
    if isinstance(routing, str):
        if routing not in ROUTINGS:
            allowed = ', '.join(repr(k) for k in ['finest', *ROUTINGS])
            raise ValueError(
                f'routing={routing!r} is unknown; allowed are {allowed}, or '
                'the config of a registered router.'
            )
        routing = ROUTINGS[routing]
    config = dict(routing)
    # `get`, unlike `build`, looks in mmdge first whatever the default scope.
    router = MODELS.get(config.pop('type'))
    if router is None:
        raise ValueError(
            f'routing={routing!r} names no registered router; mmdge has '
            'GumbelRouter, QuantileRouter, RandomRouter and UniformRouter.'
        )
    return router(embed_dims, granularities, price=price, **config)
