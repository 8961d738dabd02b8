"""How many cells get each candidate, where that is fixed beforehand.

Then every count of rows is known before an image is seen: all shapes are
constants, no GPU is waited for, and a graph can be captured or exported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .quantiles import order


def cell_counts(num: int, shares: Sequence[float]) -> list[int]:
    """How many of ``num`` cells get each candidate; they add up to ``num``.

    Args:
        num (int): Of cells.
        shares (Sequence[float]): One for each candidate, adding up to 1.
    """
    ends = [math.floor(num * end + 0.5) for end in accumulate(shares)]
    return [b - a for a, b in pairwise([0, *ends[:-1], num])]


def rectangles(length: int, cell: int) -> list[tuple[int, int]]:
    """Cells of a side that are alike, and how long they are.

    Args:
        length (int): Of a side of the map, in tokens.
        cell (int): Side of a cell in tokens.

    Returns:
        list[tuple[int, int]]: Number of cells and their length: the whole
        ones, and the one at the border that is not whole.
    """
    whole, rest = divmod(length, cell)
    return [(whole, cell)] * (whole > 0) + [(1, rest)] * (rest > 0)


def choose_shares(
    logits: Tensor, shares: Sequence[float], valid: Tensor | None = None
) -> Tensor:
    """Give each image's cells to candidates in fixed shares.

    The cheapest candidate gets the cells that want it most, by how far its
    logit is above those of the dearer ones, then the next; the rest is dense.

    Args:
        logits (Tensor): ``(B, N, K)``, the dense candidate first.
        shares (Sequence[float]): One for each candidate, adding up to 1.
        valid (Tensor, optional): Cells that are no padding, ``(B, N)``, bool;
            the others come first to the cheapest. Defaults to all.

    Returns:
        Tensor: Index of the candidate, ``(B, N)``, long; see
        :func:`cell_counts` for how many there are of each.
    """
    counts = cell_counts(logits.shape[1], shares)
    choice = logits.new_zeros(logits.shape[:2], dtype=torch.long)
    for k in reversed(range(1, len(shares))):
        if not counts[k]:
            continue
        margin = logits[..., k] - logits[..., :k].amax(-1)
        if valid is not None:
            margin = margin.masked_fill(~valid, torch.inf)
        # Those that are given out come last.
        margin = margin.nan_to_num().masked_fill(choice > 0, -torch.inf)
        choice = choice.scatter(
            1, order(margin, counts[k], descending=True), k
        )
    return choice


def choose_shares_of_map(
    logits: Tensor,
    shares: Sequence[float],
    size: tuple[int, int],
    cell: int,
    valid: Tensor | None = None,
) -> Tensor:
    """The same for a map, whose border cells may cost fewer rows.

    Shares hold, rounded, for each rectangle of cells that cost equally many:
    the whole ones, the right and the bottom border, and their corner.

    Args:
        logits (Tensor): ``(B, Rh, Rw, K)``.
        shares (Sequence[float]): See :func:`choose_shares`.
        size (tuple[int, int]): Of the map, in tokens.
        cell (int): Side of a cell in tokens.
        valid (Tensor, optional): ``(B, Rh, Rw)``, bool. Defaults to all.

    Returns:
        Tensor: ``(B, Rh, Rw)``, long.
    """
    heights, widths = (
        [num for num, _ in rectangles(length, cell)] for length in size
    )

    def given(part: Tensor, inside: Tensor | None) -> Tensor:
        if inside is not None:
            inside = inside.flatten(1)
        choice = choose_shares(part.flatten(1, 2), shares, inside)
        return choice.unflatten(1, part.shape[1:3])

    rows, top = [], 0
    for height in heights:
        pieces, left = [], 0
        for width in widths:
            here = (
                slice(None),
                slice(top, top + height),
                slice(left, left + width),
            )
            inside = None if valid is None else valid[here]
            pieces.append(given(logits[here], inside))
            left += width
        rows.append(torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0])
        top += height
    return torch.cat(rows, 1) if len(rows) > 1 else rows[0]
