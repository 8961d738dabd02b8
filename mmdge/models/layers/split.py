"""Packed rows in parts that a cache holds."""

from __future__ import annotations


def split_lengths(lengths: list[int], most: int) -> list[list[int]]:
    """Cut packed rows into parts of about ``most`` rows.

    An image that has more is cut evenly; several that have less share a part.

    Args:
        lengths (list[int]): Rows of each image, ``L_b``.
        most (int): Rows of a part, at least 1.

    Returns:
        list[list[int]]: The rows of each image in each part, in order.
    """
    parts = [[0] * len(lengths)]
    for i, length in enumerate(lengths):
        pieces = max(1, -(-length // most))
        for n in range(pieces):
            rows = length * (n + 1) // pieces - length * n // pieces
            if any(parts[-1]) and sum(parts[-1]) + rows > most:
                parts.append([0] * len(lengths))
            parts[-1][i] += rows
    return parts
