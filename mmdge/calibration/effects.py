"""What a coarse cell changes in a model's outputs, and who predicts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.models.architectures import Backbone
from mmdge.models.routing import Decision, EffectRouter, Router
from mmdge.models.routing.granularity import patch_grid

from .errors import routed_by

RIDGE = 30.0  # in units of the features' variance, of a sum over all cells


class Effects(NamedTuple):
    """What was seen of one decision; ``R`` cells, ``K`` candidates.

    Attributes:
        features (Tensor): See :meth:`EffectRouter.features`, ``(R, 2 * C)``.
        effects (Tensor): Root of the divergence between the model's outputs
            with all cells at a candidate and with none, in each cell,
            ``(R, K - 1)``.
    """

    features: Tensor
    effects: Tensor


class _Constant(Router):
    """Computes all cells in one way, and notes what it was given."""

    def __init__(self, router: Router, candidate: int) -> None:
        super().__init__(router.embed_dims, router.cost.tolist(), router.cell)
        self.candidate = candidate

    def forward(
        self, x: Tensor, valid: Tensor | None = None, errors: Any = None
    ) -> Decision:
        """See :class:`Router`."""
        self.seen, self.valid = x, valid
        grid = patch_grid(tuple(x.shape[1:3]), self.cell)
        where = torch.full((len(x), *grid), self.candidate, device=x.device)
        return Decision(where, None)


@torch.no_grad()
def collect_effects(model: nn.Module, images: Iterable[Tensor]) -> Effects:
    """Compare a model's outputs, all dense, with those of each candidate.

    Args:
        model (nn.Module): A host's, whose backbone decides once by an
            :class:`EffectRouter`; in evaluation mode.
        images (Iterable[Tensor]): Preprocessed, ``(B, 3, H, W)``.

    Returns:
        Effects: Of all cells that are no padding.
    """
    backbone: Backbone = model.backbone
    ((name, router),) = backbone.routers_by_name().items()
    seen = []
    for image in images:
        with backbone.as_dense_twin():
            dense = outputs(model, image)
        effects = []
        for candidate in range(1, router.num_candidates):
            constant = _Constant(router, candidate)
            with routed_by(backbone, {name: constant}):
                changed = outputs(model, image)
            size = tuple(constant.seen.shape[1:3])
            moved = compare(dense, changed)
            moved = sum(_to_cells(m, size, router.cell) for m in moved)
            effects.append(moved.sqrt())
        features = router.features(constant.seen.float())
        stacked = torch.stack(effects, -1)  # (B, Rh, Rw, K - 1)
        known = constant.valid
        if known is None:
            known = torch.ones_like(stacked[..., 0], dtype=torch.bool)
        seen.append(Effects(features[known], stacked[known]))
    return Effects(*map(torch.cat, zip(*seen, strict=True)))


@torch.no_grad()
def dense_outputs(model: nn.Module, images: Iterable[Tensor]) -> list[list]:
    """The :func:`outputs` of the dense twin, image by image."""
    with model.backbone.as_dense_twin():
        return [outputs(model, image) for image in images]


@torch.no_grad()
def distance(
    model: nn.Module, images: Iterable[Tensor], dense: Iterable[list]
) -> float:
    """How far a model's outputs are from others.

    Args:
        model (nn.Module): A host's, in evaluation mode.
        images (Iterable[Tensor]): Preprocessed, ``(B, 3, H, W)``.
        dense (Iterable[list]): See :func:`dense_outputs`.

    Returns:
        float: Sum of :func:`compare` over all places of all images.
    """
    return sum(
        moved.sum().item()
        for image, expected in zip(images, dense, strict=True)
        for moved in compare(expected, outputs(model, image))
    )


@torch.no_grad()
def block_effects(model: nn.Module, images: Iterable[Tensor]) -> list[float]:
    """How far outputs move if all of one block is a step less than dense.

    Args:
        model (nn.Module): A host's, in evaluation mode.
        images (Iterable[Tensor]): Preprocessed, ``(B, 3, H, W)``.

    Returns:
        list[float]: Of each router's block, added up over the images.
    """
    backbone: Backbone = model.backbone
    routers = backbone.routers_by_name()
    dense = {name: _Constant(router, 0) for name, router in routers.items()}
    effects = dict.fromkeys(routers, 0.0)
    for image in images:
        with routed_by(backbone, dense):
            expected = outputs(model, image)
        for name, router in routers.items():
            with routed_by(backbone, {**dense, name: _Constant(router, 1)}):
                changed = outputs(model, image)
            moved = sum(m.sum().item() for m in compare(expected, changed))
            effects[name] += moved
    return list(effects.values())


@torch.no_grad()
def set_effect_router(router: EffectRouter, seen: Effects) -> float:
    """Fit what it predicts, by ridge regression; its price is not touched.

    Args:
        router (EffectRouter): Of a backbone that decides once.
        seen (Effects): See :func:`collect_effects`.

    Returns:
        float: Part of the effects' variance that is explained, on the same
        images.
    """
    x, y = seen.features.double(), seen.effects.double()
    # In units in which an average cell changes by 1.
    y = y / y.mean().clamp(min=torch.finfo(y.dtype).tiny)
    mean, std = x.mean(0), x.std(0) + 1e-6
    z, target = (x - mean) / std, y - y.mean(0)
    gram = z.T @ z + RIDGE * torch.eye(z.shape[1], dtype=z.dtype).to(z)
    weight = torch.linalg.solve(gram, z.T @ target)  # (2 * C, K - 1)
    left = (target - z @ weight).square().sum() / target.square().sum()
    weight = weight / std[:, None]
    router.weight.copy_(weight.T)
    router.bias.copy_(y.mean(0) - mean @ weight)
    router.own_price.zero_()
    return 1 - left.item()


def outputs(
    model: nn.Module, images: Tensor
) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]]:
    """Maps of a host's model in which a change counts, and how it counts.

    Where there are class scores at every place, of a segmentor, a one-stage
    detector or a region proposal network, by the divergence of their
    probabilities; else the backbone's maps, by the squared difference.

    Returns:
        list[tuple[Callable, Tensor]]: From maps ``(B, C, h, w)``, dense and
        changed, to ``(B, h, w)``; and the map.
    """
    head = getattr(model, 'decode_head', None)
    if hasattr(head, 'conv_seg'):
        scores = head(model.extract_feat(images))
        scores = scores[0] if isinstance(scores, tuple) else scores
        one = head.out_channels == 1
        count = sigmoid_divergence if one else softmax_divergence
        return [(count, scores.float())]
    for name in ('bbox_head', 'rpn_head'):
        head = getattr(model, name, None)
        if hasattr(head, 'prior_generator'):
            scores = head(model.extract_feat(images))[0]
            return [(sigmoid_divergence, s.float()) for s in scores]
    backbone = model.backbone
    own, backbone.out_type = backbone.out_type, 'featmap'
    try:
        return [(squared_difference, f.float()) for f in backbone(images)]
    finally:
        backbone.out_type = own


def compare(dense: Sequence, changed: Sequence) -> list[Tensor]:
    """How far two of :func:`outputs` differ, ``(B, h, w)`` each."""
    return [
        count(there, here)
        for (count, there), (_, here) in zip(dense, changed, strict=True)
    ]


def softmax_divergence(dense: Tensor, changed: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class probabilities, ``(B, h, w)``."""
    dense, changed = dense.log_softmax(1), changed.log_softmax(1)
    return (dense.exp() * (dense - changed)).sum(1).clamp(min=0)


def sigmoid_divergence(dense: Tensor, changed: Tensor) -> Tensor:
    """The same of independent yes and no, added up over the channels."""
    total = 0
    for sign in (1, -1):
        ours, theirs = F.logsigmoid(sign * dense), F.logsigmoid(sign * changed)
        total = total + (ours.exp() * (ours - theirs)).sum(1)
    return total.clamp(min=0)


def squared_difference(dense: Tensor, changed: Tensor) -> Tensor:
    """Over the channels, ``(B, h, w)``."""
    return (dense - changed).square().sum(1)


def _to_cells(change: Tensor, size: tuple[int, int], cell: int) -> Tensor:
    """Sum of a map ``(B, h, w)`` over each cell of a token map, ``(B, R..)``.

    The first is brought to the ``size`` of the second; cells of ``cell``
    tokens begin at the upper left.
    """
    mean = F.interpolate(change[:, None], size, mode='area')
    scale = change[0].numel() / mean[0].numel()
    sums = F.avg_pool2d(mean, cell, ceil_mode=True, divisor_override=1)
    return scale * sums[:, 0]
