"""Pooling and packing of token maps as pure functions.

A token map ``(B, H, W, C)`` is cut into regions of ``S x S`` tokens, ``S`` the
coarsest granularity. At granularity ``phi`` a region is pooled to patches of
``phi x phi`` tokens, one query each. Maps need not be divisible: patches and
regions at the right and bottom border hold, and average, the tokens there
are.

The chosen queries are packed over the batch::

    tokens, coarser patches --pack--> (sum_b L_b, C) --block--> updates
    updates --unpack--> (B, E + N, C)

To train a router, the updates of all candidates tell what another choice would
have done (:func:`gate_gradient`).

``E`` extra tokens (cls) come first and are never pooled; ``M`` is the number
of patches of all granularities together, finest granularity first.

Source: Dynamic Grained Encoder (NeurIPS 2021), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Size = tuple[int, int]


def patch_grid(size: Size, side: int) -> Size:
    """Rows and columns of patches of a map of ``size``."""
    return -(-size[0] // side), -(-size[1] // side)


def pool(x: Tensor, side: int) -> Tensor:
    """Average patches of ``side x side`` tokens.

    Args:
        x (Tensor): Token map ``(B, H, W, C)``.
        side (int): Side of a patch in tokens.

    Returns:
        Tensor: ``(B, ceil(H / side), ceil(W / side), C)``; a border patch is
        the mean of the tokens it has. ``pool(unpool(y)) == y``.
    """
    if side == 1:
        return x
    return F.avg_pool2d(
        x.permute(0, 3, 1, 2), side, ceil_mode=True, count_include_pad=False
    ).permute(0, 2, 3, 1)


def unpool(y: Tensor, side: int, size: Size) -> Tensor:
    """Copy each patch's value to its tokens; the inverse of :func:`pool`.

    Args:
        y (Tensor): ``(B, ceil(H / side), ceil(W / side), ...)``.
        side (int): Side of a patch in tokens.
        size (tuple[int, int]): The map's height and width ``(H, W)``.

    Returns:
        Tensor: ``(B, H, W, ...)``.
    """
    if side == 1:
        return y
    rows = y.repeat_interleave(side, dim=1)[:, : size[0]]
    return rows.repeat_interleave(side, dim=2)[:, :, : size[1]]


def region_variance(x: Tensor, region: int) -> Tensor:
    """Variance of the tokens inside each region, averaged over channels.

    What the mean of a region cannot tell: how much would be lost if one
    query stood for all of it.

    Args:
        x (Tensor): Token map ``(B, H, W, C)``, float32.
        region (int): Side ``S`` of a region in tokens.

    Returns:
        Tensor: ``(B, ceil(H / S), ceil(W / S))``, not negative.
    """
    # Centred first: the difference of second moment and squared mean would
    # drown in rounding where the mean is large.
    height, width, channels = x.shape[1:]
    missing = -height % region
    rows = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    mean = pool(x, region).repeat_interleave(region, dim=2)[:, :, :width]
    # (B, Rh, S, W, C) - (B, Rh, 1, W, C)
    centred = rows.unflatten(1, (-1, region)) - mean[:, :, None]
    square = torch.linalg.vector_norm(centred, dim=-1).square() / channels
    # (B, Rh, S, W) -> (B, H, W, 1)
    square = square.flatten(1, 2)[:, :height, :, None]
    return pool(square, region).squeeze(-1)


def content_regions(
    content: Tensor | None, size: Size, side: int
) -> Tensor | None:
    """Which regions hold any of the image, and not just padding.

    Args:
        content (Tensor | None): Cells, 1 where there is any of the image and
            else 0, ``(B, h, w)``; None passes.
        size (tuple[int, int]): Rows and columns of regions, ``(Rh, Rw)``; at
            most as many as cover the cells.
        side (int): Side of a region in cells.

    Returns:
        Tensor | None: ``(B, Rh, Rw)``, bool. An image without any content
        counts as content throughout.
    """
    if content is None:
        return None
    pooled = content
    if side > 1:
        pooled = F.max_pool2d(content[:, None], side, ceil_mode=True)[:, 0]
    regions = pooled[:, : size[0], : size[1]] > 0
    return regions | ~regions.flatten(1).any(1)[:, None, None]


class _Tables(NamedTuple):
    """What follows from the size of a map alone, see :func:`_tables`."""

    counts: Tensor  # (Rh, Rw, K) queries of a region at each granularity
    level: Tensor  # (M,) granularity of a candidate, as an index
    region: Tensor  # (M,) region of a candidate
    token_region: Tensor  # (N,) region of a token
    cover: Tensor  # (N, K) the candidates that a token belongs to


def _region_queries(
    size: Size, granularities: tuple[int, ...], device: torch.device
) -> Tensor:
    """See :func:`query_counts`."""
    region = max(granularities)

    def per_axis(length: int) -> Tensor:  # (R, K)
        start = torch.arange(0, length, region, device=device)
        tokens = (length - start).clamp(max=region)
        return torch.stack(
            [
                (tokens + side - 1).div(side, rounding_mode='floor')
                for side in granularities
            ],
            dim=-1,
        )

    height, width = size
    return per_axis(height)[:, None] * per_axis(width)[None]


# The blocks of a stage share a size, and so do many images; 32 sizes of PVT.
@lru_cache(maxsize=128)
def _tables(
    size: Size, granularities: tuple[int, ...], device: torch.device
) -> _Tables:
    region_side = max(granularities)
    regions = math.prod(patch_grid(size, region_side))
    grids = [patch_grid(size, side) for side in granularities]
    # Tables made in inference mode would be of no use in training.
    with torch.inference_mode(False):
        numbers = torch.arange(regions, device=device)
        numbers = numbers.view(1, *patch_grid(size, region_side))
        region, cover, first = [], [], 0
        for grid, side in zip(grids, granularities, strict=True):
            # A patch lies inside one region: regions' numbers can be copied.
            owner = unpool(numbers, region_side // side, grid).flatten()
            num = len(owner)
            region.append(owner)
            patch = torch.arange(first, first + num, device=device)
            cover.append(unpool(patch.view(1, *grid), side, size).flatten())
            first += num
        level = torch.cat(
            [torch.full_like(owner, k) for k, owner in enumerate(region)]
        )
        return _Tables(
            _region_queries(size, granularities, device),
            level,
            torch.cat(region),
            unpool(numbers, region_side, size).flatten(),
            torch.stack(cover, -1),
        )


def query_counts(
    size: Size, granularities: Sequence[int], device: torch.device = None
) -> Tensor:
    """Queries that each region costs at each granularity.

    Args:
        size (tuple[int, int]): The map's height and width in tokens.
        granularities (Sequence[int]): Candidates, finest first.
        device (torch.device, optional): Where to put the result.

    Returns:
        Tensor: ``(Rh, Rw, K)``, long. Border regions have fewer.
    """
    device = torch.device('cpu') if device is None else device
    return _tables(tuple(size), tuple(granularities), device).counts


def own_tokens(x: Tensor, size: Size, granularities: Sequence[int]) -> Tensor:
    """The tokens that are candidates as they are.

    Args:
        x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.

    Returns:
        Tensor: All, or the extra tokens if the finest granularity is not 1.
    """
    return x if granularities[0] == 1 else x[:, : -size[0] * size[1]]


def coarser(x: Tensor, size: Size, granularities: Sequence[int]) -> Tensor:
    """Pool the map at every granularity but 1.

    Args:
        x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.

    Returns:
        Tensor: The patches of each granularity in raster order, one
        granularity after the other, ``(B, M', C)``.
    """
    tokens = x[:, x.shape[1] - size[0] * size[1] :].unflatten(1, size)
    pooled, grid, last = [], tokens, 1  # (B, H, W, C)
    for side in granularities[granularities[0] == 1 :]:
        # Means of means, as long as all of them are of full patches.
        if side % last or any(length % last for length in size):
            grid, last = tokens, 1
        grid, last = pool(grid, side // last), side
        pooled.append(grid.flatten(1, 2))
    if not pooled:
        return x[:, :0]
    return torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]


def candidates(x: Tensor, size: Size, granularities: Sequence[int]) -> Tensor:
    """All that could become a query.

    Args:
        x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.

    Returns:
        Tensor: ``(B, E + M, C)``: the extra tokens, then the patches of each
        granularity in raster order.
    """
    own = own_tokens(x, size, granularities)
    return torch.cat([own, coarser(x, size, granularities)], dim=1)


def candidate_gates(
    gate: Tensor, size: Size, granularities: Sequence[int], num_extra: int = 0
) -> Tensor:
    """Give every candidate the gate of its region.

    Args:
        gate (Tensor): ``(B, Rh, Rw, K)``, of any type.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.
        num_extra (int): Extra tokens ``E``, whose gate is 1. Defaults to 0.

    Returns:
        Tensor: ``(B, E + M)``, ordered as by :func:`candidates`.
    """
    region = max(granularities)
    gates = [gate.new_ones(len(gate), num_extra)]
    for k, side in enumerate(granularities):
        # A patch lies inside one region, so patches of regions can be copied.
        grid = patch_grid(size, side)
        gates.append(unpool(gate[..., k], region // side, grid).flatten(1))
    return torch.cat(gates, dim=1)


def update_errors(
    updates: Tensor, size: Size, granularities: Sequence[int]
) -> Tensor:
    """What each region would lose at each granularity.

    Args:
        updates (Tensor): Of the candidates, ``(B, E + M, C)``, ordered as by
            :func:`candidates`.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.

    Returns:
        Tensor: Squared difference to the finest candidate's update, averaged
        over the region's tokens and the channels, ``(B, Rh, Rw, K)``; 0 for
        the finest itself.
    """
    grids = [patch_grid(size, side) for side in granularities]
    lengths = [rows * columns for rows, columns in grids]
    parts = updates[:, -sum(lengths) :].split(lengths, dim=1)
    finest = unpool(parts[0].unflatten(1, grids[0]), granularities[0], size)
    errors = []
    for side, grid, part in zip(granularities, grids, parts, strict=True):
        part = unpool(part.unflatten(1, grid), side, size)  # (B, H, W, C)
        error = (part - finest).square().mean(-1, keepdim=True)
        errors.append(pool(error, max(granularities)))
    return torch.cat(errors, dim=-1)


def gate_gradient(
    grad: Tensor, updates: Tensor, size: Size, granularities: Sequence[int]
) -> Tensor:
    """Gradient of the gates by which candidates' updates are chosen.

    Un-pooled, multiplied by the gates and added up over the granularities
    (the paper's training), the updates give each token its own. A gate's
    gradient is then, summed over the tokens of its region, the product of
    their gradient and the update that it would give them.

    Args:
        grad (Tensor): Of the tokens, ``(B, E + H * W, C)``.
        updates (Tensor): Of the candidates, ``(B, E + M, C)``, ordered as by
            :func:`candidates`.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.

    Returns:
        Tensor: ``(B, Rh, Rw, K)``, float32 or finer.
    """
    grids = [patch_grid(size, side) for side in granularities]
    num_extra = grad.shape[1] - size[0] * size[1]
    lengths = [num_extra, *(rows * columns for rows, columns in grids)]
    grad = grad[:, num_extra:].unflatten(1, size)  # (B, H, W, C)
    gradients = []
    for side, grid, update in zip(
        granularities, grids, updates.split(lengths, dim=1)[1:], strict=True
    ):
        patch = _sum(grad, side).flatten(1, 2)  # (B, M_k, C)
        product = (patch * update).sum(-1, dtype=_at_least_float32(patch))
        product = product.unflatten(1, grid)[..., None]
        gradients.append(_sum(product, max(granularities) // side))
    return torch.cat(gradients, dim=-1)


class WithGate(torch.autograd.Function):
    """Hand tokens on as they are, and in backward give a gate its gradient.

    ``WithGate.apply(tokens, gate, updates, size, granularities)``, arguments
    as of :func:`gate_gradient`; ``gate`` is ``(B, Rh, Rw, K)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        gate: Tensor,
        updates: Tensor,
        size: Size,
        granularities: Sequence[int],
    ) -> Tensor:
        """Return ``tokens``."""
        ctx.save_for_backward(updates)
        ctx.size, ctx.granularities = size, granularities
        ctx.dtype = gate.dtype
        return tokens.view_as(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Pass the gradient on, and reduce it to the gate's."""
        (updates,) = ctx.saved_tensors
        gate = gate_gradient(grad, updates, ctx.size, ctx.granularities)
        return grad, gate.to(ctx.dtype), None, None, None


def _sum(x: Tensor, side: int) -> Tensor:
    """Add up patches of ``side x side`` tokens, see :func:`pool`."""
    if side == 1:
        return x
    x = x.permute(0, 3, 1, 2)
    return F.avg_pool2d(x, side, ceil_mode=True, divisor_override=1).permute(
        0, 2, 3, 1
    )


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class Packing(NamedTuple):
    """Which candidates are kept, and which of them each token belongs to.

    Of an image come first those that are tokens, extra tokens among them,
    then those that are patches of several.

    Attributes:
        tokens (Tensor): Rows of the flattened :func:`own_tokens` that are
            kept, ascending.
        patches (Tensor): Rows of the flattened :func:`coarser` patches
            ``(B * M', C)`` that are kept, ascending.
        pieces (list[int]): Their numbers, image by image, in turns.
        source (Tensor): Packed row of each token, ``(B, E + N)``.
        counts (Tensor): Packed rows of each image, ``(B,)``.
    """

    tokens: Tensor
    patches: Tensor
    pieces: list[int]
    source: Tensor
    counts: Tensor

    @property
    def lengths(self) -> list[int]:
        """Packed rows of each image, ``L_b``, known to the host."""
        return list(map(add, self.pieces[::2], self.pieces[1::2]))


def plan_packing(
    choice: Tensor,
    size: Size,
    granularities: Sequence[int],
    num_extra: int = 0,
) -> Packing:
    """Turn each region's choice into indices.

    Args:
        choice (Tensor): Index into ``granularities`` of each region,
            ``(B, Rh, Rw)``, long.
        size (tuple[int, int]): ``(H, W)``.
        granularities (Sequence[int]): Candidates, finest first.
        num_extra (int): Extra tokens ``E`` of each image. Defaults to 0.
    """
    tables = _tables(tuple(size), tuple(granularities), choice.device)
    choice = choice.flatten(1)  # (B, R)
    keep = choice[:, tables.region] == tables.level  # (B, M)
    if num_extra:
        keep = F.pad(keep, (num_extra, 0), value=True)
    own = num_extra + (size[0] * size[1] if granularities[0] == 1 else 0)
    kinds = keep[:, :own], keep[:, own:]
    counts = torch.stack([kind.sum(1) for kind in kinds], dim=1)  # (B, 2)
    pieces = counts.flatten().tolist()  # the one time a GPU is waited for
    # As `nonzero`, which would have to wait for the GPU to count.
    tokens, patches = (
        torch.repeat_interleave(kind.flatten().int(), output_size=sum(num))
        for kind, num in zip(kinds, (pieces[::2], pieces[1::2]), strict=True)
    )
    # Each token's candidate is the one of its region's granularity.
    level = choice[:, tables.token_region, None]  # (B, N, 1)
    cover = tables.cover.expand(len(choice), -1, -1).gather(2, level)
    row = keep.flatten().cumsum(0).sub(1).view_as(keep)  # (B, E + M)
    source = row.gather(1, cover.squeeze(2) + num_extra)
    if num_extra:
        source = torch.cat([row[:, :num_extra], source], dim=1)
    return Packing(tokens, patches, pieces, source, counts.sum(1))


def pack(tokens: Tensor, patches: Tensor, packing: Packing) -> Tensor:
    """Keep the chosen rows.

    Args:
        tokens (Tensor): The :func:`own_tokens`, ``(B, E + N, C)`` or
            ``(B, E, C)``.
        patches (Tensor): The :func:`coarser` patches, ``(B, M', C)``.
        packing (Packing): For them.

    Returns:
        Tensor: ``(sum_b L_b, C)``, image-major.
    """
    rows = [
        x.flatten(0, 1).index_select(0, index)
        for x, index in ((tokens, packing.tokens), (patches, packing.patches))
    ]
    if len(tokens) > 1:
        own, pooled = packing.pieces[::2], packing.pieces[1::2]
        in_turns = zip(rows[0].split(own), rows[1].split(pooled), strict=True)
        rows = [piece for pair in in_turns for piece in pair]
    return torch.cat(rows)


def unpack(updates: Tensor, packing: Packing) -> Tensor:
    """Copy updates to tokens: ``(sum_b L_b, C)`` -> ``(B, E + N, C)``.

    The inverse of :func:`pack`: pooling its result at the granularity of each
    region and packing again gives ``updates``.
    """
    flat = updates.index_select(0, packing.source.flatten())
    return flat.view(*packing.source.shape, -1)
