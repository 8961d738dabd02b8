"""Routers: how is each cell computed?

Every router gives one logit per cell and candidate, the dense one first; the
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
- :class:`.EffectRouter` (``'effect'``) predicts what it would change in the
  model's outputs, for methods that decide once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.registry import MODELS, find_class
from mmdge.utils import UserError, is_number

from ..cost import LinearCost
from .fixed_shares import choose_shares, choose_shares_of_map
from .granularity import patch_grid, pool


class Decision(NamedTuple):
    """What a router decided for a batch.

    Attributes:
        choice (Tensor): Index of the candidate, ``(B, *cells)``, long.
        gate (Tensor | None): The same one-hot, ``(B, *cells, K)``, float32,
            with the straight-through gradient of a router that has
            parameters; None where no gradient is wanted, as in evaluation.
        shares (tuple[float, ...] | None): Of the cells of every image that
            get each candidate, where that is fixed beforehand, see
            :func:`.choose_shares`. Defaults to None.
    """

    choice: Tensor
    gate: Tensor | None
    shares: tuple[float, ...] | None = None


class Router(nn.Module):
    """Base of all routers: logits to a decision.

    A cell, e.g. a region of tokens, is computed in one of ``K`` ways, the
    candidates; candidate 0 is the dense one.

    Args:
        embed_dims (int): Channels ``C`` of the tokens.
        cost (Sequence[float]): Of each candidate, relative to the dense one,
            which comes first: e.g. (1, 1/4, 1/16) for granularities, (1, 0)
            for keep and drop.
        cell (int): Side of a cell in tokens.
        price (float): Lagrange multiplier of the choice at test time,
            ``argmax(logit_k - price * cost_k)``. 0, the default, is the
            router as it was trained; a higher price is cheaper. In training
            ``train_price`` takes its place, which is 0 unless
            :class:`mmdge.RandomPriceHook` sets it.
        temperature (float): Of the softmax whose gradient the gate passes on.

    Attributes:
        adaptive (bool): Whether what is spent may differ from image to image
            and from cell to cell; False where that is fixed by design.
        priced (bool): Whether a price moves what it spends.
        records_sides (bool): Whether its parameters hold for its candidates
            only, so that a checkpoint must say what they were.
        fixed_shares (tuple[float, ...] | None): At test give each candidate
            this share of every image's cells, to those that want it most;
            see :func:`mmdge.calibration.fix_shapes`. None, the default: as
            many as want it.
    """

    adaptive = priced = True
    fixed_shares: tuple[float, ...] | None = None
    records_sides = False

    def __init__(
        self,
        embed_dims: int,
        cost: Sequence[float],
        cell: int,
        price: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not is_number(price):
            raise UserError(f'price must be a number, but got {price!r}.')
        if not is_number(temperature) or temperature <= 0:
            raise UserError(
                f'temperature must be positive, but got {temperature!r}.'
            )
        self.embed_dims = embed_dims
        self.cell = cell
        self.price = price
        self.temperature = temperature
        self.train_progress = 1.0
        self.train_price = 0.0
        self.num_candidates = len(cost)
        cost = torch.tensor(cost, dtype=torch.float32)
        self.register_buffer('cost', cost, persistent=False)
        coarsest = torch.full_like(cost, -torch.inf)
        coarsest[-1] = 0
        self.register_buffer('coarsest', coarsest, persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> Router:
        """Move, but stay in float32.

        Weights of errors exceed what float16 holds, and thresholds need more
        digits than half precision has.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype.itemsize < 4:
                return tensor.to(moved.device)
            return moved

        return super()._apply(move, recurse)

    @property
    def progress(self) -> float:
        """0: every cell dense; 1: the router's own choice.

        Only training warms up, so that an evaluation, during training or of
        its checkpoint, always shows the router's own choice.
        """
        return self.train_progress if self.training else 1.0

    def reset_parameters(self) -> None:
        """Initialise the parameters, if there are any."""

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """Logits ``(B, Rh, Rw, K)`` of a map; arguments as of ``forward``."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        errors: Callable[[], Tensor] | None = None,
    ) -> Decision | None:
        """Decide, never in half precision.

        Args:
            x (Tensor): Token map ``(B, H, W, C)``.
            valid (Tensor, optional): Cells that are no padding,
                ``(B, Rh, Rw)``, bool. Defaults to all.
            errors (Callable, optional): Computes what each candidate would
                get wrong, ``(B, Rh, Rw, K)``, which costs more than is saved:
                for an oracle, and for calibration.

        Returns:
            Decision | None: None if every cell is dense and no gradient is
            wanted, so that the block may run without routing.
        """
        with torch.autocast(x.device.type, enabled=False):
            # Half precision is too coarse for thresholds and noise.
            x = x.float() if x.dtype.itemsize < 4 else x
            if valid is None:
                grid = patch_grid(x.shape[1:3], self.cell)
                valid = x.new_ones(len(x), *grid, dtype=torch.bool)
            return self.decide(self.logits(x, valid), valid, x.shape[1:3])

    def decide(
        self,
        logits: Tensor,
        valid: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Decision | None:
        """Choose by logits ``(B, *cells, K)``; see :meth:`forward`.

        ``valid`` are the cells that are no padding; ``size`` is that of the
        map in tokens, if it is one.
        """
        learns = self.training and logits.requires_grad
        if self.progress == 0 and not learns:
            return None
        price = self.train_price if self.training else self.price
        if price:
            logits = logits - price * self.cost
        shares = None if self.training else self.fixed_shares
        if shares is not None:
            return Decision(self._share_out(logits, valid, size), None, shares)
        choice = logits.argmax(-1)
        gate = None
        if learns:
            gate = F.one_hot(choice, self.num_candidates).to(logits.dtype)
            soft = (logits / self.temperature).softmax(-1)
            gate = gate - soft.detach() + soft
        return Decision(choice, gate)

    def _share_out(
        self,
        logits: Tensor,
        valid: Tensor | None,
        size: tuple[int, int] | None,
    ) -> Tensor:
        """Choose in fixed shares; arguments as of :meth:`decide`."""
        if size is not None:
            return choose_shares_of_map(
                logits, self.fixed_shares, size, self.cell, valid
            )
        flat = logits.flatten(1, -2)  # (B, *cells, K) -> (B, N, K)
        inside = None if valid is None else valid.flatten(1)
        choice = choose_shares(flat, self.fixed_shares, inside)
        return choice.view(logits.shape[:-1])

    def without_padding(self, logits: Tensor, valid: Tensor) -> Tensor:
        """Logits by which padding is coarsest at any price.

        Not before a warm-up, when all is finest.
        """
        if self.progress == 0:
            return logits
        return logits.where(valid[..., None], self.coarsest)

    def absorb_price(self) -> None:
        """Make the price a part of what was calibrated; 0 from then on.

        A router without calibration keeps it.
        """

    def flops(self) -> LinearCost:
        """Multiply-adds per cell (none without a linear layer)."""
        return LinearCost(0, 0)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply ``layer`` in the precision of ``x``, whatever its own."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def add_gumbel_noise(logits: Tensor) -> Tensor:
    """Perturb logits so that their argmax is a sample of their softmax."""
    exponential = torch.empty_like(logits).exponential_()
    return logits - exponential.clamp(min=1e-30).log()


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

    records_sides = True

    def __init__(
        self,
        embed_dims: int,
        cost: Sequence[float],
        cell: int,
        noise: bool = True,
        init_finest: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, cost, cell, **kwargs)
        if not is_number(init_finest) or not 0 < init_finest < 1:
            raise UserError(
                f'init_finest must be in (0, 1), but got {init_finest}.'
            )
        self.noise = noise
        self.init_finest = init_finest
        self.gate = nn.Linear(embed_dims, self.num_candidates)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See :class:`Router`."""
        num = self.num_candidates
        nn.init.trunc_normal_(self.gate.weight, std=0.01)
        # softmax of (+b, -b, ..., -b) is init_finest for the first one
        odds = self.init_finest * (num - 1) / (1 - self.init_finest)
        bias = 0.5 * math.log(odds) if num > 1 else 0.0
        with torch.no_grad():
            self.gate.bias.fill_(-bias)
            self.gate.bias[0] = bias

    def logits(self, x: Tensor, valid: Tensor) -> Tensor:
        """See :class:`Router`; padding is routed like the rest."""
        logits = linear(self.gate, pool(x, self.cell))  # (B, Rh, Rw, K)
        if self.training and self.noise:
            logits = add_gumbel_noise(logits)
        return logits

    def flops(self) -> LinearCost:
        """See :class:`Router`."""
        return LinearCost(0, self.embed_dims * self.num_candidates)


STATIC = ('finest', 'static')
ROUTINGS = {
    'learned': dict(type='GumbelRouter'),
    'gumbel': dict(type='GumbelRouter'),
    'variance': dict(type='QuantileRouter', score='variance'),
    'error': dict(type='ErrorRouter'),
    'effect': dict(type='EffectRouter'),
    'oracle': dict(type='OracleRouter'),
    'shuffled': dict(type='ShuffledRouter'),
    'random': dict(type='RandomRouter'),
    'uniform': dict(type='UniformRouter'),
}


def build_router(
    routing: str | dict,
    embed_dims: int,
    cost: Sequence[float],
    cell: int,
    price: float = 0.0,
) -> Router | None:
    """Build a router.

    Args:
        routing (str | dict): ``'learned'`` (or ``'gumbel'``), ``'variance'``,
            ``'error'``, ``'effect'``, ``'oracle'``, ``'shuffled'``,
            ``'random'``, ``'uniform'``, ``'finest'`` (or ``'static'``), or
            the config of a registered router.
        embed_dims (int): See :class:`Router`, also for the others.
        cost (Sequence[float]): Of each candidate.
        cell (int): Side of a cell in tokens.
        price (float): Defaults to 0.

    Returns:
        Router | None: None if there is nothing to choose.
    """
    if routing in STATIC or len(cost) == 1:
        return None
    config = ROUTINGS.get(routing) if isinstance(routing, str) else routing
    if not isinstance(config, dict) or 'type' not in config:
        allowed = ', '.join(repr(k) for k in [*STATIC, *ROUTINGS])
        raise UserError(
            f'routing={routing!r} is unknown; allowed are {allowed}, or the '
            "config of a router, e.g. dict(type='QuantileRouter')."
        )
    config = dict(config)
    if 'price' in config:
        raise UserError(
            f'routing={routing!r} has a price of its own: give it to the '
            'backbone, as price=, for all routers.'
        )
    router = find_class(config.pop('type'))
    if not (isinstance(router, type) and issubclass(router, Router)):
        raise UserError(
            f'routing={routing!r} names no registered router; mmdge has '
            'GumbelRouter, QuantileRouter, ErrorRouter, EffectRouter, '
            'OracleRouter, ShuffledRouter, RandomRouter and UniformRouter.'
        )
    return router(embed_dims, cost, cell, price=price, **config)
