"""What a backbone's blocks would get wrong at cheaper candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mmdge.models.architectures import Backbone
from mmdge.models.routing import Router, region_variance
from mmdge.utils import UserError


class BlockErrors(NamedTuple):
    """What was seen of one block; ``R`` regions, ``K`` candidates.

    Attributes:
        variance (Tensor): Inside each region where there is a choice, that
            is, in no padding and of more than a single row, ``(R,)``.
        errors (Tensor): See :meth:`Grains.errors`, ``(R, K)``.
        flops (float): Multiply-adds of a row.
    """

    variance: Tensor
    errors: Tensor
    flops: float

    def mean_error(self, candidate: int) -> float:
        """Of all regions; 0 if there are none."""
        return self.errors[:, candidate].sum().item() / max(
            1, len(self.errors)
        )

    @classmethod
    def joined(cls, parts: Sequence[BlockErrors]) -> BlockErrors:
        """Of several batches, one."""
        variance, errors, flops = zip(*parts, strict=True)
        mean_flops = sum(flops) / len(flops)
        return cls(torch.cat(variance), torch.cat(errors), mean_flops)


class _Watcher(Router):
    """Note what each candidate would get wrong, and compute the dense one."""

    def __init__(self, router: Router) -> None:
        super().__init__(router.embed_dims, router.cost.tolist(), router.cell)
        self.seen: list[BlockErrors] = []

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        errors: Callable[[], Tensor] | None = None,
    ) -> None:
        """See :class:`Router`."""
        variance = region_variance(x.float(), self.cell)
        # Padding, and a border's single row, can't go wrong; they would bend
        # the fit.
        known = errors.is_choice.expand_as(variance)
        if valid is not None:
            known = known & valid
        self.seen.append(
            BlockErrors(
                variance[known],
                errors().float()[known],  # (B, Rh, Rw, K) -> (R, K)
                errors.flops_per_row,
            )
        )


@torch.no_grad()
def collect_errors(
    backbone: Backbone, batches: Iterable[Tensor]
) -> list[BlockErrors]:
    """See what each routed block does where all are at the finest granularity.

    Args:
        backbone (Backbone): In evaluation mode.
        batches (Iterable[Tensor]): Preprocessed images ``(B, 3, H, W)``.

    Returns:
        list[BlockErrors]: Of the blocks that route, in their order.

    Raises:
        UserError: If no block routes.
    """
    check_routed(backbone)
    watchers = {
        name: _Watcher(router)
        for name, router in backbone.routers_by_name().items()
    }
    with routed_by(backbone, watchers):
        for images in batches:
            backbone(images)
    return [BlockErrors.joined(watcher.seen) for watcher in watchers.values()]


def check_routed(backbone: Backbone) -> None:
    """Raise a UserError if no price moves anything."""
    if not any(router.priced for router in backbone.routers):
        raise UserError(
            'the backbone spends the same on every image, since none of its '
            "blocks routes; set model.backbone.routing to other than 'finest' "
            'and granularities to several, e.g. (1, 2, 4), or of DynamicViT '
            "amount='price', of a CF-ViT that classifies num_classes"
        )


@contextmanager
def routed_by(
    backbone: Backbone, routers: Mapping[str, Router]
) -> Iterator[None]:
    """Exchange some routers, by name, for a while."""
    own = {name: backbone.get_submodule(name) for name in routers}

    def put(routers: Mapping[str, Router]) -> None:
        for name, router in routers.items():
            parent, _, attribute = name.rpartition('.')
            setattr(backbone.get_submodule(parent), attribute, router)

    try:
        put(routers)
        yield
    finally:
        put(own)
