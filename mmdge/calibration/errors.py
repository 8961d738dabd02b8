"""What a backbone's blocks would get wrong at coarser granularities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdge.models.backbones import DynamicBackbone
from mmdge.models.routing import (
    DGEBlock,
    QuantileRouter,
    Router,
    build_router,
    region_variance,
)
from mmdge.utils import UserError


@dataclass
class BlockErrors:
    """What was seen of one block; ``R`` regions, ``K`` candidates.

    Attributes:
        variance (Tensor): Inside each region, ``(R,)``.
        errors (Tensor): See :func:`update_errors`, ``(R, K)``.
        flops (float): Multiply-adds of a query.
        reach (float): How much the maps that the backbone returns change,
            relative to their variance, per unit of this block's mean error.
    """

    variance: Tensor
    errors: Tensor
    flops: float
    reach: float


@dataclass
class _Seen:
    """The same while images go by; lists have one entry per batch."""

    variance: list[Tensor] = field(default_factory=list)  # (B, Rh, Rw)
    errors: list[Tensor] = field(default_factory=list)  # (B, Rh, Rw, K)
    flops: list[float] = field(default_factory=list)
    change: float = 0.0  # of the maps, while the block is the only one routed
    caused_by: float = 0.0  # its error at that


@torch.no_grad()
def collect_errors(
    backbone: DynamicBackbone, batches: Iterable[Tensor]
) -> list[BlockErrors]:
    """See what each routed block does, the others at the finest granularity.

    Each image passes once for the errors and once per block for their reach.

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
    seen = [_Seen() for _ in blocks]
    # None where the finest query is a token.
    finest = [
        build_router('finest', b.router.embed_dims, b.granularities)
        for b in blocks
    ]
    finest = {n: r.eval() for n, r in enumerate(finest) if r is not None}
    # Half of the regions coarser, as a budget in the middle would have it;
    # ranked in each image, since nothing is remembered.
    alone = [
        QuantileRouter(b.router.embed_dims, b.granularities).eval()
        for b in blocks
    ]
    for images in batches:
        for router in (*alone, *finest.values()):
            router.to(images.device)
        with routed_by(blocks, finest), _watched(blocks, seen):
            maps = backbone(images)
        for number, (router, entry) in enumerate(
            zip(alone, seen, strict=True)
        ):
            with routed_by(blocks, {**finest, number: router}):
                changed = backbone(images)
            decided = {m.name: m.granularity for m in backbone.cost.maps}
            decided = decided[blocks[number].name]
            chosen = router.sides == decided[..., None]
            entry.change += relative_change(maps, changed)
            entry.caused_by += entry.errors[-1][chosen].mean().item()
    return [
        BlockErrors(
            torch.cat([v.flatten() for v in entry.variance]),
            torch.cat([e.flatten(0, 2) for e in entry.errors]),
            sum(entry.flops) / len(entry.flops),
            entry.change / max(entry.caused_by, 1e-12),
        )
        for entry in seen
    ]


def routed_blocks(backbone: DynamicBackbone) -> list[DGEBlock]:
    """The blocks that route, in their order."""
    return [
        module
        for module in backbone.modules()
        if isinstance(module, DGEBlock) and module.router is not None
    ]


def check_routed(backbone: DynamicBackbone) -> None:
    """Raise a UserError if no block routes."""
    if not routed_blocks(backbone):
        raise UserError(
            'the backbone spends the same on every image, since none of its '
            "blocks routes; set model.backbone.routing to other than 'finest' "
            'and granularities to several, e.g. (1, 2, 4)'
        )


def relative_change(
    maps: Sequence[Tensor | Sequence[Tensor]],
    changed: Sequence[Tensor | Sequence[Tensor]],
) -> float:
    """Squared change of maps over their variance, averaged over the maps.

    Args:
        maps (Sequence): Each ``(B, C, H, W)``; or a token ``(B, C)``, whose
            variance is that over its channels; or several of these.
        changed (Sequence): The same maps, changed.
    """
    parts = []
    for old, new in zip(_flat(maps), _flat(changed), strict=True):
        over = 1 if old.ndim == 2 else (0, 2, 3)
        centred = old - old.mean(over, keepdim=True)
        parts.append((new - old).square().sum() / centred.square().sum())
    return torch.stack(parts).mean().item()


def _flat(maps: Sequence[Tensor | Sequence[Tensor]]) -> list[Tensor]:
    return [
        part
        for entry in maps
        for part in ([entry] if isinstance(entry, Tensor) else entry)
    ]


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
    blocks: Sequence[DGEBlock], seen: Sequence[_Seen]
) -> Iterator[None]:
    """Note variance and errors of the blocks' inputs."""

    def watch(entry: _Seen):
        def look(block: DGEBlock, args: tuple) -> None:
            tokens, size, *_ = args
            num_extra = tokens.shape[1] - size[0] * size[1]
            grid = tokens[:, num_extra:].unflatten(1, size)  # (B, H, W, C)
            region = block.granularities[-1]
            entry.variance.append(region_variance(grid.float(), region))
            entry.errors.append(block.errors(tokens, size).float())
            flops = block.attn.flops(size, num_extra) + block.mlp.flops()
            entry.flops.append(flops.per_query)

        return look

    handles = [
        block.register_forward_pre_hook(watch(entry))
        for block, entry in zip(blocks, seen, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
