"""A block of any architecture: what all tokens need, what works row by row.

Nothing here knows of attention or convolution. A static backbone, and every
method, runs a block in the same three steps::

    base, source, context = block.prepare(tokens, size)   all tokens are seen
    updates = block.update(rows, lengths, context)         rows of the source
    tokens = base + updates, put back in their places

Rows don't see each other, so a method may choose which of them to compute,
and how. A block whose rows need their neighbours once more in between, as
PVTv2's, has a :class:`MapLayer` there, and asks for that through ``on_map``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import LinearCost

Size = tuple[int, int]


class MapLayer(nn.Module):
    """Rows to rows, which see their neighbours in the map once in between.

    Only where each row stands in its map does a layer not know; whoever calls
    a block does, and runs the three steps, see :data:`OnMap`.
    """

    def before(self, rows: Tensor) -> Tensor:
        """Rows ``(L, C)`` to hidden rows ``(L, C_h)``."""
        raise NotImplementedError

    def on_map(self, maps: Tensor, padded: bool = True) -> Tensor:
        """Hidden maps ``(B, H, W, C_h)`` to such; tokens see adjacent ones.

        If not ``padded``, of ``H + 2`` rows to ``H``: the first and the last
        are but seen.
        """
        raise NotImplementedError

    def after(self, hidden: Tensor) -> Tensor:
        """Hidden rows ``(L, C_h)`` to rows ``(L, C)``."""
        raise NotImplementedError

    def num_parts(self, rows: Tensor) -> int:
        """In how many parts rows ``(L, C)`` are best computed."""
        return 1


# on_map(layer, rows): the layer, of packed rows (sum_b L_b, C).
OnMap = Callable[[MapLayer, Tensor], Tensor]


class Prepared(NamedTuple):
    """What :meth:`Block.prepare` made of all tokens.

    Attributes:
        base (Tensor): What updates are added to, ``(B, E + N, C)``.
        source (Tensor): What rows are made of, likewise; it may have more
            channels, which updates don't have.
        context (Any): What :meth:`Block.update` needs besides rows; a tuple
            with a field ``kept``, see :class:`Block`.
    """

    base: Tensor
    source: Tensor
    context: Any


def all_alike(lengths: list[int]) -> bool:
    """Whether all images have equally many; one may have unknown many."""
    return all(length == lengths[0] for length in lengths[1:])


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al., ECCV 2016), on packed rows.

    The hosts' own DropPath drops along dimension 0, which for packed rows is
    the row; there the official DGE code drops single queries. Here a sample
    is dropped as a whole.

    Args:
        drop_prob (float): Probability to drop, in [0, 1). Defaults to 0.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise UserError(
                f'drop_prob must be in [0, 1), but got {drop_prob}.'
            )
        self.drop_prob = drop_prob

    def draw(self, batch_size: int, like: Tensor) -> Tensor | None:
        """Each sample's factor, 0 or ``1 / (1 - drop_prob)``, ``(B,)``.

        Of the type and device of ``like``; None for 1, as in evaluation.
        """
        if not self.training or not self.drop_prob:
            return None
        keep = 1 - self.drop_prob
        return like.new_empty(batch_size).bernoulli_(keep) / keep

    def forward(
        self, x: Tensor, factor: Tensor | None, lengths: list[int]
    ) -> Tensor:
        """Scale packed rows ``(sum_b L_b, C)``, of each sample ``L_b``."""
        if factor is None:
            return x
        if all_alike(lengths):
            # (B * L, C) -> (B, L * C)
            return (x.view(len(factor), -1) * factor[:, None]).view_as(x)
        # Without waiting for a GPU, which `device=x.device` would.
        rows = torch.tensor(lengths).to(x.device, non_blocking=True)
        return x * factor.repeat_interleave(rows, output_size=len(x))[:, None]


class Block(nn.Module):
    """Base of the blocks.

    A context's ``kept`` holds which images keep which of the block's updates,
    see :meth:`DropPath.draw`, in order. What :meth:`prepare` itself adds has
    been dropped by then.

    Args:
        embed_dims (int): Channels ``C``.
        drop_path (float): Probability to drop a sample's residual branch.
            Defaults to 0.
        name (str): For reports. Defaults to ``''``.
    """

    def __init__(
        self, embed_dims: int, drop_path: float = 0.0, name: str = ''
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.name = name
        self.drop_path = DropPath(drop_path)

    def prepare(self, x: Tensor, size: Size) -> Prepared:
        """Compute what every token needs, by which tokens see each other.

        Args:
            x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
            size (tuple[int, int]): ``(H, W)``.
        """
        raise NotImplementedError

    def update(
        self,
        rows: Tensor,
        lengths: list[int],
        context: Any,
        on_map: OnMap | None = None,
    ) -> Tensor:
        """What the block adds to rows.

        Args:
            rows (Tensor): Of the source, packed over the batch, image-major,
                ``(sum_b L_b, C)``, or of more channels as the source.
            lengths (list[int]): Rows of each image, ``L_b``.
            context (Any): Of their images, see :class:`Prepared`.
            on_map (OnMap, optional): How to see rows in their map; only
                blocks that need it look at it.

        Returns:
            Tensor: ``(sum_b L_b, C)``, ``C`` being that of the base.
        """
        raise NotImplementedError

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """Multiply-adds of one image: fixed, and of each row.

        Args:
            size (tuple[int, int]): Of the map, ``(H, W)``; of tokens that
                are no map ``(N, 1)``, and ``N`` may be a tensor.
            num_extra (int): Extra tokens.
        """
        raise NotImplementedError

    def update_prepared(self, prepared: Prepared, size: Size) -> Tensor:
        """The updates of all tokens, ``(B, E + H * W, C)``."""
        base, source, context = prepared
        return self.update(
            source.flatten(0, 1),  # (B, E + N, C) -> (B * (E + N), C)
            [source.shape[1]] * len(source),
            context,
            partial(on_full_map, size=size),
        ).view_as(base)

    def update_all(self, x: Tensor, size: Size) -> Tensor:
        """Update all tokens ``(B, E + H * W, C)``, as a static backbone."""
        prepared = self.prepare(x, size)
        update = self.update_prepared(prepared, size)
        return add(prepared.base, update, out=update)

    def forward(
        self, x: Tensor, size: Size, body: Callable | None = None
    ) -> Any:
        """Update all tokens, or do what a method does in the place of that.

        Args:
            x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first.
            size (tuple[int, int]): ``(H, W)``.
            body (Callable, optional): Called with the block, ``x`` and
                ``size``; in here, because FSDP gathers a block's parameters
                for its forward. Defaults to :meth:`update_all`.
        """
        return (
            self.update_all(x, size) if body is None else body(self, x, size)
        )


def on_full_map(layer: MapLayer, rows: Tensor, size: Size) -> Tensor:
    """Run a layer on rows that are all tokens, see :data:`OnMap`."""
    maps = rows.view(-1, *size, rows.shape[-1])  # (B * N, C) -> (B, H, W, C)
    # As many of the maps' rows as are computed together.
    band = max(1, len(maps) * size[0] // layer.num_parts(rows))
    outs = [
        out
        for part in maps.split(max(1, band // size[0]))
        for out in _in_bands(layer, part, band)
    ]
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def _in_bands(layer: MapLayer, maps: Tensor, band: int) -> Iterator[Tensor]:
    """The layer's rows ``(L, C)``, band by band of ``maps (B, H, W, C)``.

    Several maps fit in one band. What the next band sees of this one is not
    computed again.
    """
    height, width = maps.shape[1:3]
    if band >= height:
        hidden = layer.before(maps.flatten(0, 2))
        hidden = hidden.unflatten(0, maps.shape[:3])  # (B, H, W, C_h)
        yield layer.after(layer.on_map(hidden).flatten(0, 2))
        return
    seen = None
    for first in range(0, height, band):
        last = min(first + band, height)
        new = maps[0, first + (first > 0) : last + 1]
        hidden = layer.before(new.flatten(0, 1)).unflatten(0, new.shape[:2])
        border = hidden.new_zeros(1, *hidden.shape[1:])
        pieces = [seen if first else border, hidden, border]
        hidden = torch.cat(pieces if last == height else pieces[:2])
        seen = hidden[-2:]
        mixed = layer.on_map(hidden[None], padded=False)  # (1, h, W, C_h)
        yield layer.after(mixed.flatten(0, 2))


def add(x: Tensor, update: Tensor, out: Tensor) -> Tensor:
    """``x + update``, all of one shape, in inference in the memory of ``out``.

    A large tensor is fresh memory from the system each time, which costs a
    CPU more than the sum does. Nobody may need ``out`` afterwards, which may
    be ``update``, but not the output of a module, which a hook may have kept.
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not x.dtype == update.dtype == out.dtype
    ):
        return x + update
    return torch.add(x, update, out=out)
