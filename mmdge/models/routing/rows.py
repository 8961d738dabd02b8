"""Rows: select, pack, scatter, as pure functions.

A method decides for each of ``M`` possible rows of an image whether it is
computed. The selected ones of all images are packed, image-major::

    keep (B, M) --select--> rows;   (B, M, C) --pack--> (sum_b L_b, C)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmdge.utils import UserError


class Rows(NamedTuple):
    """Which rows are computed.

    Attributes:
        index (Tensor): Of the flattened ``(B * M, C)``, ascending,
            ``(sum_b L_b,)``.
        lengths (list[int]): Rows of each image, ``L_b``, known to the host.
        counts (Tensor): The same as a tensor, ``(B,)``.
    """

    index: Tensor
    lengths: list[int]
    counts: Tensor


def select(
    *keeps: Tensor, lengths: Sequence[Sequence[int]] | None = None
) -> list[Rows]:
    """Turn masks into rows.

    Args:
        *keeps (Tensor): Of each source of rows, which are computed,
            ``(B, M_i)``, bool.
        lengths (Sequence[Sequence[int]], optional): How many are, of each
            source and image, where that is known beforehand. Then all shapes
            are constants, and nothing is waited for.

    Returns:
        list[Rows]: One for each source.
    """
    counts = torch.stack([keep.sum(1) for keep in keeps])  # (sources, B)
    if lengths is None and torch.compiler.is_exporting():
        return _select_of_one(keeps, counts)
    if lengths is None:
        lengths = counts.tolist()  # the one time a GPU is waited for
    # As `nonzero`, which would have to wait for the GPU to count.
    indices = [
        torch.repeat_interleave(keep.flatten().int(), output_size=sum(num))
        for keep, num in zip(keeps, lengths, strict=True)
    ]
    return [Rows(*row) for row in zip(indices, lengths, counts, strict=True)]


def _select_of_one(keeps: Sequence[Tensor], counts: Tensor) -> list[Rows]:
    """The same in an exported graph, which may not know a length."""
    if len(keeps[0]) > 1:
        raise UserError(
            'a routed backbone whose images get different numbers of rows can '
            f'be exported for one image at a time, not for {len(keeps[0])}; '
            'give it constant shapes, by mmdge.calibration.fix_shapes, or '
            'export it with a batch of 1'
        )
    indices = [keep.flatten().nonzero().squeeze(1) for keep in keeps]
    return [
        Rows(index, [index.shape[0]], count)
        for index, count in zip(indices, counts, strict=True)
    ]


def pack(sources: Sequence[Tensor], selected: Sequence[Rows]) -> Tensor:
    """Gather the selected rows.

    Args:
        sources (Sequence[Tensor]): ``(B, M_i, C)`` each.
        selected (Sequence[Rows]): One for each source.

    Returns:
        Tensor: ``(sum_b L_b, C)``, image-major; of an image those of the
        first source come first.
    """
    packed = [
        source.flatten(0, 1).index_select(0, rows.index)
        for source, rows in zip(sources, selected, strict=True)
    ]
    if len(packed) > 1 and len(sources[0]) > 1:
        pieces = [
            part.split(rows.lengths)
            for part, rows in zip(packed, selected, strict=True)
        ]
        packed = [
            piece for turn in zip(*pieces, strict=True) for piece in turn
        ]
    return torch.cat(packed) if len(packed) > 1 else packed[0]


def scatter(x: Tensor, rows: Rows, values: Tensor) -> Tensor:
    """Put rows back in their places.

    Args:
        x (Tensor): ``(B, M, C)``; what is not selected stays as it is.
        rows (Rows): Their places.
        values (Tensor): Packed, ``(sum_b L_b, C)``.

    Returns:
        Tensor: Of the shape of ``x``.
    """
    flat = x.flatten(0, 1).index_copy(0, rows.index.long(), values.to(x.dtype))
    return flat.view_as(x)
