"""Regions and their granularities: pooling and un-pooling of token maps.

A token map ``(B, H, W, C)`` is cut into regions of ``S x S`` tokens, ``S`` the
coarsest granularity. At granularity ``phi`` a region is pooled to patches of
``phi x phi`` tokens, one row each. Maps need not be divisible: patches and
regions at the right and bottom border hold, and average, the tokens there
are.

:class:`Grains` has all of it for maps of one size; :meth:`Grains.choose`
turns a decision into the pair of pool and un-pool::

    pool, unpool, lengths, *_ = grains.choose(choice)
    tokens --pool--> (sum_b L_b, C) --block--> updates --unpool--> tokens

``E`` extra tokens (cls) come first and are never pooled; ``M`` is the number
of patches of all granularities together, finest granularity first.

Source: Dynamic Grained Encoder (NeurIPS 2021), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..layers.block import MapLayer
from ..tables import table
from .fixed_shares import cell_counts, rectangles
from .rows import pack, select

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


class Choice(NamedTuple):
    """A decision, ready to be carried out; see :meth:`Grains.choose`.

    ``pool`` goes from the :meth:`Grains.candidates` to the packed rows
    ``(sum_b L_b, C)``, ``unpool`` from such rows to the tokens that they stand
    for, ``(B, E + N, C)``; ``lengths`` and ``counts`` are the ``L_b``;
    ``levels`` is the decision, ``(B, Rh, Rw)``.
    """

    pool: Callable[[tuple[Tensor, Tensor]], Tensor]
    unpool: Callable[[Tensor], Tensor]
    lengths: list[int]
    counts: Tensor
    levels: Tensor


class Grains:
    """The patches of token maps of one size, at several granularities.

    Args:
        size (tuple[int, int]): Height and width of the map ``(H, W)``.
        sides (Sequence[int]): Granularities, finest first, each dividing the
            last, which is the region's side.
        num_extra (int): Extra tokens ``E``. Defaults to 0.
    """

    def __init__(
        self, size: Size, sides: Sequence[int], num_extra: int = 0
    ) -> None:
        self.size = tuple(size)
        self.sides = tuple(sides)
        self.num_extra = num_extra
        self.region = self.sides[-1]
        self.grids = [patch_grid(self.size, side) for side in self.sides]

    def to_map(self, x: Tensor) -> Tensor:
        """``(B, E + N, C)`` without the extra tokens, ``(B, H, W, C)``."""
        return x[:, self.num_extra :].unflatten(1, self.size)

    def row_counts(self, device: torch.device) -> Tensor:
        """Rows that each region costs at each granularity.

        Returns:
            Tensor: ``(Rh, Rw, K)``, long. Border regions have fewer.
        """
        return _tables(self.size, self.sides, device).counts

    def shares(self, device: torch.device) -> Tensor:
        """Share of the dense rows at each granularity, ``(K,)``, float64."""
        return _tables(self.size, self.sides, device).shares

    def candidates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All that could become a row.

        Args:
            x (Tensor): Tokens ``(B, E + N, C)``, extra tokens first.

        Returns:
            tuple[Tensor, Tensor]: Those that are tokens as they are, the
            extra ones and, if the finest granularity is 1, all others; and
            the patches of the other granularities in raster order, one
            granularity after the other. Together ``(B, E + M, C)``.
        """
        tokens = self.to_map(x)
        pooled, grid, last = [], tokens, 1  # (B, H, W, C)
        is_token = self.sides[0] == 1
        for side in self.sides[is_token:]:
            # Means of means, as long as all of them are of full patches.
            if side % last or any(length % last for length in self.size):
                grid, last = tokens, 1
            grid, last = pool(grid, side // last), side
            pooled.append(grid.flatten(1, 2))
        own = x if is_token else x[:, : self.num_extra]
        if not pooled:
            return own, x[:, :0]
        return own, torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]

    def log_sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of how many tokens each of :meth:`candidates` stands for.

        Args:
            x (Tensor): Tokens ``(B, E + N, C)``.

        Returns:
            tuple[Tensor, Tensor]: In the candidates' order, ``(B, ..., 1)``.
        """
        sizes = _tables(self.size, self.sides, x.device).sizes.to(x.dtype)
        sizes = F.pad(sizes.log(), (self.num_extra, 0))  # (E + M,)
        own = self.num_extra
        if self.sides[0] == 1:
            own += math.prod(self.size)
        return tuple(
            part[None, :, None].expand(len(x), -1, -1)
            for part in sizes.tensor_split([own])
        )

    def num_rows(self, shares: Sequence[float]) -> tuple[int, int]:
        """Rows of an image where fixed shares of the regions are chosen.

        Args:
            shares (Sequence[float]): One for each granularity, see
                :func:`.choose_shares_of_map`.

        Returns:
            tuple[int, int]: Of the first of :meth:`candidates`, and of the
            second.
        """
        rows = [0] * len(self.sides)
        heights, widths = (
            rectangles(length, self.region) for length in self.size
        )
        for (down, height), (across, width) in product(heights, widths):
            counts = cell_counts(down * across, shares)
            for k, side in enumerate(self.sides):
                rows[k] += counts[k] * math.prod(
                    patch_grid((height, width), side)
                )
        is_token = self.sides[0] == 1
        own = self.num_extra + sum(rows[:is_token])
        return own, sum(rows[is_token:])

    def choose(
        self, choice: Tensor, shares: Sequence[float] | None = None
    ) -> Choice:
        """Turn each region's choice into the pair of pool and un-pool.

        Args:
            choice (Tensor): Index of the granularity of each region,
                ``(B, Rh, Rw)``, long.
            shares (Sequence[float], optional): See :class:`Decision`: with
                them nothing is asked of the data.
        """
        tables = _tables(self.size, self.sides, choice.device)
        levels, choice = choice, choice.flatten(1)  # (B, R)
        keep = choice[:, tables.region] == tables.level  # (B, M)
        if self.num_extra:
            keep = F.pad(keep, (self.num_extra, 0), value=True)
        own = self.num_extra
        if self.sides[0] == 1:
            own += self.size[0] * self.size[1]
        lengths = None
        if shares is not None:
            lengths = [[num] * len(keep) for num in self.num_rows(shares)]
        least = self.num_extra + math.prod(self.grids[-1])
        selected = select(
            keep[:, :own], keep[:, own:], lengths=lengths, least=least
        )
        # Each token's candidate is the one of its region's granularity.
        level = choice[:, tables.token_region, None]  # (B, N, 1)
        cover = tables.cover.expand(len(choice), -1, -1).gather(2, level)
        row = keep.flatten().cumsum(0).sub(1).view_as(keep)  # (B, E + M)
        source = row.gather(1, cover.squeeze(2) + self.num_extra)
        if self.num_extra:
            source = torch.cat([row[:, : self.num_extra], source], dim=1)

        def copy(updates: Tensor) -> Tensor:
            flat = updates.index_select(0, source.flatten())
            return flat.view(*source.shape, -1)

        return Choice(
            lambda candidates: pack(candidates, selected),
            copy,
            list(map(add, selected[0].lengths, selected[1].lengths)),
            selected[0].counts + selected[1].counts,
            levels,
        )

    def on_map(self, layer: MapLayer, rows: Tensor, choice: Choice) -> Tensor:
        """Run a layer on packed rows, see :data:`OnMap`.

        Hidden rows are un-pooled to their map, and pooled again. For maps
        without extra tokens.
        """
        # As many rows of regions as are computed together.
        regions = len(choice.levels) * self.grids[-1][0]
        band = max(1, regions // layer.num_parts(rows))
        if band < regions:
            return self._on_bands(layer, rows, choice.levels, band)
        hidden = self.to_map(choice.unpool(layer.before(rows)))
        hidden = layer.on_map(hidden).flatten(1, 2)  # (B, N, C_h)
        return layer.after(choice.pool(self.candidates(hidden)))

    def _on_bands(
        self, layer: MapLayer, rows: Tensor, levels: Tensor, band: int
    ) -> Tensor:
        """The same, band by band of ``band`` rows of regions of an image.

        So hidden maps stay in a CPU's cache. Rows are packed by image and
        granularity, in raster order: those of a band are slices of them.
        """
        bands = levels.split(band, 1)  # (B, band, Rw) each
        num_pieces = len(self.sides) * len(bands)  # of an image
        counts = F.one_hot(levels, len(self.sides)) * self.row_counts(
            levels.device
        )  # (B, Rh, Rw, K)
        counts = [part.sum((1, 2)) for part in counts.split(band, 1)]
        lengths = torch.stack(counts, -1).flatten().tolist()  # (B, K, bands)
        pieces = list(rows.split(lengths))

        def unpooled(image: int, number: int) -> tuple:
            """The pieces of a band, how it is pooled, its hidden map."""
            first = image * num_pieces + number
            own = slice(first, (image + 1) * num_pieces, len(bands))
            start = number * band * self.region
            height = min(self.size[0] - start, band * self.region)
            grains = Grains((height, self.size[1]), self.sides)
            choice = grains.choose(bands[number][image, None])
            hidden = choice.unpool(layer.before(torch.cat(pieces[own])))
            return own, grains, choice, grains.to_map(hidden)[0]

        for image in range(len(levels)):
            above, here = None, unpooled(image, 0)
            for number in range(1, len(bands) + 1):
                own, grains, choice, hidden = here
                border = torch.zeros_like(hidden[:1])
                below = border
                if number < len(bands):
                    here = unpooled(image, number)
                    below = here[-1][:1]
                seen = [border if above is None else above, hidden, below]
                # (1, h + 2, W, C_h) -> (1, h, W, C_h)
                mixed = layer.on_map(torch.cat(seen)[None], padded=False)
                candidates = grains.candidates(mixed.flatten(1, 2))
                out = layer.after(choice.pool(candidates))
                pieces[own] = out.split(lengths[own])
                above = hidden[-1:]
        return torch.cat(pieces)

    def on_maps_of_all(self, layer: MapLayer, rows: Tensor) -> Tensor:
        """The same with rows of all candidates, ``(B * M, C)``.

        Each granularity has a map of its own.
        """
        hidden = layer.before(rows)
        num = sum(map(math.prod, self.grids))
        maps = self._per_grain(hidden.view(-1, num, hidden.shape[-1]))
        hidden = [
            pool(layer.on_map(unpool(part, side, self.size)), side)
            for part, side in zip(maps, self.sides, strict=True)
        ]
        hidden = torch.cat([part.flatten(1, 2) for part in hidden], 1)
        return layer.after(hidden.flatten(0, 1))

    def spread(self, gate: Tensor) -> Tensor:
        """Give every token its region's one-hot gate ``(B, Rh, Rw, K)``.

        Of the chosen candidate, ``(B, E + N, 1)``; 1 for extra tokens.
        """
        gate = (gate * gate.detach()).sum(-1)  # (B, Rh, Rw)
        tokens = unpool(gate, self.region, self.size).flatten(1)
        return F.pad(tokens, (self.num_extra, 0), value=1.0)[..., None]

    def _per_grain(self, updates: Tensor) -> list[Tensor]:
        """Cut ``(B, E + M, C)``, of all candidates, into the grids' maps."""
        lengths = [rows * columns for rows, columns in self.grids]
        parts = updates.split([self.num_extra, *lengths], dim=1)[1:]
        return [
            part.unflatten(1, grid)
            for part, grid in zip(parts, self.grids, strict=True)
        ]

    def errors(self, updates: Tensor) -> Tensor:
        """What each region would lose at each granularity, ``(B, Rh, Rw, K)``.

        From the updates of all candidates ``(B, E + M, C)``: the squared
        difference to the finest one's, averaged over the region's tokens and
        the channels.
        """
        maps = [
            unpool(part, side, self.size)  # (B, H, W, C)
            for part, side in zip(
                self._per_grain(updates), self.sides, strict=True
            )
        ]
        errors = [(m - maps[0]).square().mean(-1, keepdim=True) for m in maps]
        return torch.cat([pool(e, self.region) for e in errors], dim=-1)

    def gate_gradient(self, grad: Tensor, updates: Tensor) -> Tensor:
        """Gradient of the gates by which candidates' updates are chosen.

        Un-pooled, multiplied by the gates and added up over the granularities
        (the paper's training), the updates give each token its own. A gate's
        gradient is then, summed over the tokens of its region, the product of
        their gradient and the update that it would give them.

        Args:
            grad (Tensor): Of the tokens, ``(B, E + N, C)``.
            updates (Tensor): Of all candidates, ``(B, E + M, C)``.

        Returns:
            Tensor: ``(B, Rh, Rw, K)``, float32 or finer.
        """
        grad = self.to_map(grad)  # (B, H, W, C)
        exact = torch.promote_types(grad.dtype, torch.float32)
        gradients = []
        for side, part in zip(
            self.sides, self._per_grain(updates), strict=True
        ):
            product = (_sum(grad, side) * part).sum(-1, dtype=exact)
            gradients.append(_sum(product[..., None], self.region // side))
        return torch.cat(gradients, dim=-1)


class WithGate(torch.autograd.Function):
    """Hand tokens on as they are, and in backward give a gate its gradient.

    ``WithGate.apply(tokens, gate, updates, grains)``, arguments as of
    :meth:`Grains.gate_gradient`; ``gate`` is ``(B, Rh, Rw, K)``.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, gate: Tensor, updates: Tensor, grains: Grains
    ) -> Tensor:
        """Return ``tokens``."""
        ctx.save_for_backward(updates)
        ctx.grains, ctx.dtype = grains, gate.dtype
        return tokens.view_as(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Pass the gradient on, and reduce it to the gate's."""
        (updates,) = ctx.saved_tensors
        gate = ctx.grains.gate_gradient(grad, updates)
        return grad, gate.to(ctx.dtype), None, None


def _sum(x: Tensor, side: int) -> Tensor:
    """Add up patches of ``side x side`` tokens, see :func:`pool`."""
    if side == 1:
        return x
    x = x.permute(0, 3, 1, 2)
    return F.avg_pool2d(x, side, ceil_mode=True, divisor_override=1).permute(
        0, 2, 3, 1
    )


class _Tables(NamedTuple):
    """What follows from the size of a map alone, see :func:`_tables`."""

    counts: Tensor  # (Rh, Rw, K) rows of a region at each granularity
    shares: Tensor  # (K,) of the dense rows, in full regions
    level: Tensor  # (M,) granularity of a candidate, as an index
    region: Tensor  # (M,) region of a candidate
    token_region: Tensor  # (N,) region of a token
    cover: Tensor  # (N, K) the candidates that a token belongs to
    sizes: Tensor  # (M,) tokens of a candidate


# The blocks of a stage share a size, and so do many images; 32 sizes of PVT.
@table(128)
def _tables(
    size: Size, sides: tuple[int, ...], device: torch.device
) -> _Tables:
    region_side = sides[-1]
    grid = patch_grid(size, region_side)

    def rows_per_axis(length: int) -> Tensor:  # (R, K)
        start = torch.arange(0, length, region_side, device=device)
        tokens = (length - start).clamp(max=region_side)
        return torch.stack([-(-tokens // side) for side in sides], dim=-1)

    numbers = torch.arange(math.prod(grid), device=device).view(1, *grid)
    region, cover, first = [], [], 0
    for side in sides:
        # A patch lies inside one region: regions' numbers can be copied.
        patches = patch_grid(size, side)
        owner = unpool(numbers, region_side // side, patches).flatten()
        patch = torch.arange(first, first + len(owner), device=device)
        cover.append(unpool(patch.view(1, *patches), side, size).flatten())
        region.append(owner)
        first += len(owner)
    level = [torch.full_like(owner, k) for k, owner in enumerate(region)]
    rows, columns = map(rows_per_axis, size)
    return _Tables(
        rows[:, None] * columns[None],
        torch.tensor(sides, device=device).double() ** -2,
        torch.cat(level),
        torch.cat(region),
        unpool(numbers, region_side, size).flatten(),
        torch.stack(cover, -1),
        torch.cat(cover).bincount(),
    )
