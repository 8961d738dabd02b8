"""What a backbone's blocks would get wrong at coarser granularities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdge.models.backbones import DynamicBackbone
from mmdge.models.routing import (
    DGEBlock,
    QuantileRouter,
    Router,
    region_variance,
)


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
    """
    blocks = routed_blocks(backbone)
    seen = [_Seen() for _ in blocks]
    # Half of the regions coarser, as a budget in the middle would have it;
    # ranked in each image, since nothing is remembered.
    alone = [
        QuantileRouter(b.router.embed_dims, b.granularities).eval()
        for b in blocks
    ]
    for images in batches:
        with _routed_by(blocks, {}), _watched(blocks, seen):
            maps = backbone(images)
        for number, (router, entry) in enumerate(
            zip(alone, seen, strict=True)
        ):
            router.to(images.device)
            with _routed_by(blocks, {number: router}):
                changed = backbone(images)
            (decided,) = backbone.cost.maps
            chosen = router.sides == decided.granularity[..., None]
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


def relative_change(
    maps: Sequence[Tensor], changed: Sequence[Tensor]
) -> float:
    """Squared change of maps over their variance, averaged over the maps.

    Args:
        maps (Sequence[Tensor]): Each ``(B, C, ...)``.
        changed (Sequence[Tensor]): The same maps, changed.
    """
    parts = []
    for old, new in zip(maps, changed, strict=True):
        centred = old - old.transpose(0, 1).flatten(1).mean(1).view(
            1, -1, *[1] * (old.ndim - 2)
        )
        parts.append((new - old).square().sum() / centred.square().sum())
    return torch.stack(parts).mean().item()


@contextmanager
def _routed_by(
    blocks: Sequence[DGEBlock], routers: dict[int, Router]
) -> Iterator[None]:
    """Give some blocks, by number, other routers, and the others none."""
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
