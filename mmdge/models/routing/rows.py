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

from ..exporting import exporting


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
    *keeps: Tensor,
    lengths: Sequence[Sequence[int]] | None = None,
    least: int = 1,
) -> list[Rows]:
    """Turn masks into rows.

    Args:
        *keeps (Tensor): Of each source of rows, which are computed,
            ``(B, M_i)``, bool.
        lengths (Sequence[Sequence[int]], optional): How many are, of each
            source and image, where that is known beforehand. Then all shapes
            are constants, and nothing is waited for.
        least (int): Rows that an image has at any rate, which an exported
            graph of unknown lengths must know. Defaults to 1.

    Returns:
        list[Rows]: One for each source.
    """
    counts = torch.stack([keep.sum(1) for keep in keeps])  # (sources, B)
    if lengths is None and exporting():
        return _select_of_one(keeps, counts, least)
    if lengths is None:
        lengths = counts.tolist()  # the one time a GPU is waited for
    # As `nonzero`, which would have to wait for the GPU to count.
    indices = [
        _places(keep.flatten(), sum(num))
        if exporting()
        else torch.repeat_interleave(
            keep.flatten().int(), output_size=sum(num)
        )
        for keep, num in zip(keeps, lengths, strict=True)
    ]
    return [Rows(*row) for row in zip(indices, lengths, counts, strict=True)]


def _places(keep: Tensor, num: int) -> Tensor:
    """Where ``keep (M,)`` is true, ``(num,)``, by what ONNX has."""
    rank = keep.cumsum(0) * keep  # from 1; 0 for what is left out
    numbers = torch.arange(len(keep), device=keep.device)
    return numbers.new_zeros(num + 1).scatter(0, rank, numbers)[1:]


def _select_of_one(
    keeps: Sequence[Tensor], counts: Tensor, least: int
) -> list[Rows]:
    """Rows of one image in an exported graph, which can't know how many."""
    if len(keeps[0]) > 1:
        raise UserError(
            'a routed backbone whose images get different numbers of rows can '
            f'be exported for one image at a time, not for {len(keeps[0])}; '
            'give it constant shapes, by mmdge.calibration.fix_shapes, or '
            'export it with a batch of 1'
        )
    indices = [keep.flatten().nonzero().squeeze(1) for keep in keeps]
    total = sum(index.shape[0] for index in indices)
    for num in range(min(least, 2)):  # of which kernels would ask
        torch._check(total != num)
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
