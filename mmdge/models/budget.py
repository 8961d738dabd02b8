"""From a budget to shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmdge.utils import UserError

from .architectures import backbone_class
from .methods import Granularity
from .routing import default_share
from .routing.router import STATIC


def share_for_budget(
    backbone: dict,
    budget: float,
    size: tuple[int, int],
    start: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Shares of the granularities that cost ``budget`` of the dense FLOPs.

    FLOPs are linear in the shares, so ``start`` is mixed with all finest, or
    with all coarsest, until the budget is met at this size.

    Args:
        backbone (dict): Config of a dynamic backbone, with one set of
            granularities for all stages. Of a list of routings, one per
            stage, those that are ``'finest'`` stay so.
        budget (float): Ratio of dynamic to dense FLOPs, routers excluded.
        size (tuple[int, int]): Height and width of the images.
        start (Sequence[float], optional): Defaults to the routers' default.

    Returns:
        tuple[float]: For ``routing=dict(type=..., share=...)``.

    Raises:
        UserError: If the budget can't be met (even the coarsest queries, and
            the keys and values, cost something), or the config is no dynamic
            backbone's with one set of granularities.
    """
    granularities = backbone.get('granularities', (1, 2, 4))
    build = backbone_class(backbone)
    if not (build and issubclass(build, Granularity)) or not all(
        isinstance(side, int) for side in granularities
    ):
        raise UserError(
            'share_for_budget needs the config of a dynamic backbone with one '
            'set of granularities for all stages, e.g. '
            f"dict(type='mmdge.DGEPVT', arch='small'), but got {backbone}."
        )
    num = len(granularities)
    start = default_share(num) if start is None else tuple(start)
    corners = [tuple(float(i == k) for i in range(num)) for k in range(num)]

    def ratio_at(share: Sequence[float]) -> float:
        uniform = dict(type='UniformRouter', share=share)
        routing = backbone.get('routing')
        if isinstance(routing, (list, tuple)):  # some stages may be static
            routing = [r if r in STATIC else uniform for r in routing]
        else:
            routing = uniform
        config = dict(backbone, routing=routing, init_cfg=None)
        config.pop('type'), config.pop('price', None)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = build(**config).eval()
            model(torch.ones(1, model.in_channels, *size))
        return model.cost.ratio.item()

    costs = [ratio_at(corner) for corner in corners]
    if not costs[-1] <= budget <= costs[0]:
        raise UserError(
            f"budget={budget} can't be met at {size[0]} x {size[1]}: all "
            f'coarsest costs {costs[-1]:.3f} of the dense FLOPs, all finest '
            f'{costs[0]:.3f}.'
        )
    now = sum(part * cost for part, cost in zip(start, costs, strict=True))
    target = 0 if budget > now else num - 1
    mix = (budget - now) / (costs[target] - now) if budget != now else 0.0
    return tuple(
        (1 - mix) * part + mix * end
        for part, end in zip(start, corners[target], strict=True)
    )
