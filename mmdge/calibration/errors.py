"""What a backbone's blocks would get wrong at coarser granularities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor

from mmdge.models.backbones import DynamicBackbone
from mmdge.models.routing import (
    DGEBlock,
    FinestRouter,
    Router,
    query_counts,
    region_variance,
)
from mmdge.utils import UserError


class BlockErrors(NamedTuple):
    """What was seen of one block; ``R`` regions, ``K`` candidates.

    Attributes:
        variance (Tensor): Inside each region where there is a choice, that
            is, in no padding and of more than a single query, ``(R,)``.
        errors (Tensor): See :func:`update_errors`, ``(R, K)``.
        flops (float): Multiply-adds of a query.
    """

    variance: Tensor
    errors: Tensor
    flops: float

    @classmethod
    def joined(cls, parts: Sequence[BlockErrors]) -> BlockErrors:
        """Of several batches, one."""
        variance, errors, flops = zip(*parts, strict=True)
        mean_flops = sum(flops) / len(flops)
        return cls(torch.cat(variance), torch.cat(errors), mean_flops)


@torch.no_grad()
def collect_errors(
    backbone: DynamicBackbone, batches: Iterable[Tensor]
) -> list[BlockErrors]:
    """See what each routed block does where all are at the finest granularity.

    Args:
        backbone (DynamicBackbone): In evaluation mode.
        batches (Iterable[Tensor]): Preprocessed images ``(B, 3, H, W)``.

    Returns:
        list[BlockErrors]: Of the blocks that route, in their order.

    Raises:
        UserError: If no block routes.
    """
    check_routed(backbone)
    blocks = routed_blocks(backbone)
    # Without any router a backbone doesn't look for padding.
    finest = {
        number: FinestRouter(block.router.embed_dims, block.granularities)
        for number, block in enumerate(blocks)
    }
    seen: list[list[BlockErrors]] = [[] for _ in blocks]
    with routed_by(blocks, finest), _watched(blocks, seen):
        for images in batches:
            for router in finest.values():
                router.to(images.device)
            backbone(images)
    return [BlockErrors.joined(parts) for parts in seen]


def routed_blocks(backbone: DynamicBackbone) -> list[DGEBlock]:
    """The blocks that route, in their order."""
    return [
        module
        for module in backbone.modules()
        if isinstance(module, DGEBlock)
        and not isinstance(module.router, FinestRouter | None)
    ]


def check_routed(backbone: DynamicBackbone) -> None:
    """Raise a UserError if no block routes."""
    if not routed_blocks(backbone):
        raise UserError(
            'the backbone spends the same on every image, since none of its '
            "blocks routes; set model.backbone.routing to other than 'finest' "
            'and granularities to several, e.g. (1, 2, 4)'
        )


@contextmanager
def routed_by(
    blocks: Sequence[DGEBlock], routers: Mapping[int, Router]
) -> Iterator[None]:
    """Give some blocks, by number, other routers, and the others none.

    With ``routers={}`` the backbone is its dense twin.
    """
    own = [block.router for block in blocks]
    try:
        for number, block in enumerate(blocks):
            block.router = routers.get(number)
        yield
    finally:
        for block, router in zip(blocks, own, strict=True):
            block.router = router


@contextmanager
def _watched(
    blocks: Sequence[DGEBlock], seen: Sequence[list[BlockErrors]]
) -> Iterator[None]:
    """Note what the blocks would get wrong of each batch."""

    def watch(parts: list[BlockErrors]):
        def look(block: DGEBlock, args: tuple, kwargs: dict) -> None:
            given = signature(block.forward).bind(*args, **kwargs).arguments
            tokens, size = given['x'], given['size']
            num_extra = tokens.shape[1] - size[0] * size[1]
            grid = tokens[:, num_extra:].unflatten(1, size)  # (B, H, W, C)
            variance = region_variance(grid.float(), block.granularities[-1])
            errors = block.errors(tokens, size).float()  # (B, Rh, Rw, K)
            flops = block.attn.flops(size, num_extra) + block.mlp.flops()
            # Padding, and a border's single query, can't go wrong; they would
            # bend the fit.
            content = given.get('content')
            if content is None:
                content = torch.ones_like(variance, dtype=torch.bool)
            counts = query_counts(size, block.granularities, tokens.device)
            known = content & (counts[..., 0] > counts[..., -1])
            parts.append(
                BlockErrors(variance[known], errors[known], flops.per_query)
            )

        return look

    handles = [
        block.register_forward_pre_hook(watch(parts), with_kwargs=True)
        for block, parts in zip(blocks, seen, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
