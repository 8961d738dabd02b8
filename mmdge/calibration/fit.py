"""From what was seen of the blocks to the settings of their routers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from mmdge.models.architectures import Backbone
from mmdge.models.routing import EffectRouter, ErrorRouter
from mmdge.models.routing.error_routers import LEAST

from .effects import block_effects, collect_effects, set_effect_router
from .errors import BlockErrors, collect_errors
from .price import find_price, fold_price, ratio_at_price

# Of fewer regions no exponent is read; nor one beyond this, which would be
# chance, and may overflow.
_FEWEST, _STEEPEST = 8, 4.0


def fit_power_law(variance: Tensor, error: Tensor) -> tuple[float, float]:
    """Fit ``error = scale * variance ** exponent``.

    A line through the logarithms, moved so that the mean error is met. Of
    fewer than eight regions the error is taken to be proportional.

    Args:
        variance (Tensor): ``(R,)``, not negative.
        error (Tensor): ``(R,)``, not negative.

    Returns:
        tuple[float, float]: Scale and exponent, neither negative; the
        exponent is at most 4.
    """
    exponent = 1.0
    if len(variance) >= _FEWEST:
        x, y = _logarithms(variance, error)
        centred = x - x.mean()
        spread = centred.square().sum().clamp(min=LEAST)
        slope = (centred * (y - y.mean())).sum() / spread
        exponent = slope.clamp(0, _STEEPEST).item()
    powers = variance.double().clamp(min=LEAST) ** exponent
    scale = error.double().sum() / powers.sum().clamp(min=LEAST**_STEEPEST)
    return scale.item(), exponent


def _logarithms(*values: Tensor) -> Tensor:
    return torch.stack(values).double().clamp(min=LEAST).log()


@torch.no_grad()
def set_routers(
    backbone: Backbone,
    seen: Sequence[BlockErrors],
    effects: Sequence[float] | None = None,
) -> None:
    """Calibrate the ErrorRouters of a backbone, but for the price.

    Weights are such that an average error of the network weighs 1.

    Args:
        backbone (Backbone): With ``routing='error'``.
        seen (Sequence[BlockErrors]): Of its routed blocks.
        effects (Sequence[float], optional): See :func:`block_effects`: what
            the errors of each block's second candidate do to the outputs.
            Errors of a real network are not comparable between its blocks
            without. Defaults to None: all errors weigh alike.
    """
    # A region's cost is in units of its finest rows, which are tokens or
    # patches of several.
    routers = backbone.routers
    if effects is None:
        effects = [entry.mean_error(1) for entry in seen]
    worth = [
        effect
        / max(entry.mean_error(1), LEAST)
        * router.tokens_per_row
        / entry.flops
        for router, entry, effect in zip(routers, seen, effects, strict=True)
    ]
    total = sum(
        part * entry.mean_error(-1)
        for part, entry in zip(worth, seen, strict=True)
    )
    average = total / len(seen) or 1.0  # or nothing is ever wrong
    for router, entry, part in zip(routers, seen, worth, strict=True):
        router.weight.fill_(part / average)
        for k in range(1, router.num_candidates):
            router.scale[k], router.exponent[k] = fit_power_law(
                entry.variance, entry.errors[:, k]
            )


def fit_routers(
    model: nn.Module, images: Sequence[Tensor], num_fit: int
) -> None:
    """Fit all routers that can be, but for the price.

    Args:
        model (nn.Module): A host's, in evaluation mode.
        images (Sequence[Tensor]): Preprocessed, ``(1, 3, H, W)`` each.
        num_fit (int): How many of them errors are fitted to. Effects, which
            have more to fit, are to all.
    """
    backbone = model.backbone
    routers = backbone.routers
    if any(isinstance(router, EffectRouter) for router in routers):
        print(f'comparing outputs on {len(images)} images')
        shown = track_iter_progress(list(images), file=sys.stderr)
        seen = collect_effects(model, shown)
        explained = set_effect_router(*routers, seen)
        print(f'{explained:.0%} of their change is explained')
    elif any(isinstance(router, ErrorRouter) for router in routers):
        print(f'fitting errors to {min(num_fit, len(images))} images')
        seen = collect_errors(backbone, images[:num_fit])
        effects = block_effects(model, images[: num_fit // 4 or 1])
        set_routers(backbone, seen, effects)


def calibrate(
    model: nn.Module, images: Sequence[Tensor], num_fit: int, ratio: float
) -> float:
    """Fit all routers, and make the price that spends a ratio theirs.

    Args:
        model (nn.Module): See :func:`fit_routers`, also for the others.
        images (Sequence[Tensor]): See there.
        num_fit (int): See there.
        ratio (float): Of dynamic to dense FLOPs.

    Returns:
        float: What is spent on these images.
    """
    fit_routers(model, images, num_fit)
    print(f'looking for the price on {len(images)} images')
    price, spent = find_price(ratio_at_price(model.backbone, images), ratio)
    fold_price(model.backbone, price)
    return spent
