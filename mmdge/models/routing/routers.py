"""Routers: which granularity does each region get?

Every router gives one logit per region and candidate, finest first; the
decision is the same for all of them: ``argmax(logit_k - price * cost_k)``.
What differs is where the logits come from:

- :class:`GumbelRouter` (``routing='learned'``): the paper's form, a linear
  layer on the region's mean; noise in training, the amount learned through
  the budget loss. Official weights need it.
- :mod:`.share_routers` keep *where* apart from *how much*: fixed shares of
  ranked regions. :class:`QuantileRouter` ranks by the variance of the tokens
  inside the region (``'variance'``) or by a learned score;
  :class:`RandomRouter` (``'random'``) and :class:`UniformRouter`
  (``'uniform'``) are the controls.
- :mod:`.error_routers` predict what a coarser granularity would get wrong,
  and spend where it is worth its FLOPs, whatever the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.registry import MODELS, find_class
from mmdge.utils import is_number

from ..cost import LinearCost
from .grains import patch_grid, pool


class Decision(NamedTuple):
    """What a router decided for a batch.

    Attributes:
        choice (Tensor): Index of the candidate, ``(B, Rh, Rw)``, long.
        gate (Tensor | None): The same one-hot, ``(B, Rh, Rw, K)``, float32,
            with the straight-through gradient of a router that has
            parameters; None where no gradient is wanted, as in evaluation.
    """

    choice: Tensor
    gate: Tensor | None


class Router(nn.Module):
    """Base of all routers: logits to a decision.

    Args:
        embed_dims (int): Channels ``C`` of the tokens.
        granularities (Sequence[int]): ``K`` candidates, finest first.
        price (float): Shifts the choice at test time: ``argmax(logit_k -
            price * cost_k)``, ``cost_k`` being the queries of candidate k
            relative to the finest one's. 0, the default, is the router as it
            was trained; a higher price gives coarser regions. In training
            ``train_price`` takes its place, which is 0 unless
            :class:`mmdge.RandomPriceHook` sets it.
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
        if not is_number(price):
            raise ValueError(f'price must be a number, but got {price!r}.')
        if not is_number(temperature) or temperature <= 0:
            raise ValueError(
                f'temperature must be positive, but got {temperature!r}.'
            )
        self.embed_dims = embed_dims
        self.granularities = tuple(granularities)
        self.price = price
        self.temperature = temperature
        self.train_progress = 1.0
        self.train_price = 0.0
        cost = [(self.granularities[0] / g) ** 2 for g in self.granularities]
        self.register_buffer('cost', torch.tensor(cost), persistent=False)
        sides = torch.tensor(self.granularities)
        self.register_buffer('sides', sides, persistent=False)

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

    def reset_parameters(self) -> None:
        """Initialise the parameters, if there are any."""

    def logits(self, x: Tensor, content: Tensor) -> Tensor:
        """Logits ``(B, Rh, Rw, K)`` of a map; arguments as of ``forward``."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        content: Tensor | None = None,
        errors: Callable[[], Tensor] | None = None,
    ) -> Decision | None:
        """Decide, never in half precision.

        Args:
            x (Tensor): Token map ``(B, H, W, C)``.
            content (Tensor, optional): Regions that are no padding,
                ``(B, Rh, Rw)``, bool. Defaults to all.
            errors (Callable, optional): Computes what each candidate would
                get wrong, ``(B, Rh, Rw, K)``, which costs more than is saved:
                for an oracle.

        Returns:
            Decision | None: None if every token is its own query and no
            gradient is wanted, so that the block may run without routing.
        """
        with torch.autocast(x.device.type, enabled=False):
            # Half precision is too coarse for thresholds and noise.
            x = x.float() if x.dtype.itemsize < 4 else x
            if content is None:
                grid = patch_grid(x.shape[1:3], self.region)
                content = x.new_ones(len(x), *grid, dtype=torch.bool)
            return self.decide(self.logits(x, content))

    def decide(self, logits: Tensor) -> Decision | None:
        """Choose by logits ``(B, Rh, Rw, K)``; see :meth:`forward`."""
        learns = self.training and logits.requires_grad
        dense = self.progress == 0 and self.granularities[0] == 1
        if dense and not learns:
            return None
        price = self.train_price if self.training else self.price
        if price:
            logits = logits - price * self.cost
        choice = logits.argmax(-1)
        gate = None
        if learns:
            gate = F.one_hot(choice, len(self.cost)).to(logits.dtype)
            soft = (logits / self.temperature).softmax(-1)
            gate = gate - soft.detach() + soft
        return Decision(choice, gate)

    def flops(self) -> LinearCost:
        """Multiply-adds per region (none without a linear layer)."""
        return LinearCost(0, 0)

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f'granularities={self.granularities}, price={self.price}'


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply ``layer`` in the precision of ``x``, whatever its own."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class FinestRouter(Router):
    """No choice: every region at the finest granularity, at any price."""

    def forward(
        self,
        x: Tensor,
        content: Tensor | None = None,
        errors: Callable[[], Tensor] | None = None,
    ) -> Decision | None:
        """See :class:`Router`."""
        if self.granularities[0] == 1:
            return None
        grid = patch_grid(x.shape[1:3], self.region)
        choice = torch.zeros(len(x), *grid, dtype=torch.long, device=x.device)
        return Decision(choice, None)


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
        if not is_number(init_finest) or not 0 < init_finest < 1:
            raise ValueError(
                f'init_finest must be in (0, 1), but got {init_finest}.'
            )
        self.noise = noise
        self.init_finest = init_finest
        self.gate = nn.Linear(embed_dims, len(self.granularities))
        # A checkpoint says among what its routers choose.
        self.register_buffer('sides', self.sides, persistent=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See :class:`Router`."""
        num = len(self.granularities)
        nn.init.trunc_normal_(self.gate.weight, std=0.01)
        # softmax of (+b, -b, ..., -b) is init_finest for the first one
        odds = self.init_finest * (num - 1) / (1 - self.init_finest)
        bias = 0.5 * math.log(odds) if num > 1 else 0.0
        with torch.no_grad():
            self.gate.bias.fill_(-bias)
            self.gate.bias[0] = bias

    def logits(self, x: Tensor, content: Tensor) -> Tensor:
        """See :class:`Router`; padding is routed like the rest."""
        logits = linear(self.gate, pool(x, self.region))  # (B, Rh, Rw, K)
        if self.training and self.noise:
            exponential = torch.empty_like(logits).exponential_()
            logits = logits - exponential.clamp(min=1e-30).log()
        return logits

    def flops(self) -> LinearCost:
        """See :class:`Router`."""
        return LinearCost(0, self.gate.weight.numel())


ROUTINGS = {
    'learned': dict(type='GumbelRouter'),
    'variance': dict(type='QuantileRouter', score='variance'),
    'error': dict(type='ErrorRouter'),
    'oracle': dict(type='OracleRouter'),
    'shuffled': dict(type='ShuffledRouter'),
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
        routing (str | dict): ``'learned'``, ``'variance'``, ``'error'``,
            ``'oracle'``, ``'shuffled'``, ``'random'``, ``'uniform'``,
            ``'finest'``, or the config of a registered router.
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
        return FinestRouter(embed_dims, granularities)
    config = ROUTINGS.get(routing) if isinstance(routing, str) else routing
    if not isinstance(config, dict) or 'type' not in config:
        allowed = ', '.join(repr(k) for k in ['finest', *ROUTINGS])
        raise ValueError(
            f'routing={routing!r} is unknown; allowed are {allowed}, or the '
            "config of a router, e.g. dict(type='QuantileRouter')."
        )
    config = dict(config)
    if 'price' in config:
        raise ValueError(
            f'routing={routing!r} has a price of its own: give it to the '
            'backbone, as price=, for all routers.'
        )
    router = find_class(config.pop('type'))
    if not (isinstance(router, type) and issubclass(router, Router)):
        raise ValueError(
            f'routing={routing!r} names no registered router; mmdge has '
            'GumbelRouter, QuantileRouter, ErrorRouter, OracleRouter, '
            'ShuffledRouter, RandomRouter and UniformRouter.'
        )
    return router(embed_dims, granularities, price=price, **config)
