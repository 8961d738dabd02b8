"""Stochastic depth that drops whole samples of a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch per sample (Huang et al., ECCV 2016).

    The hosts' own DropPath drops along dimension 0, which for packed queries
    is the query; there the official DGE code drops single queries. Here a
    sample is dropped as a whole.

    Args:
        drop_prob (float): Probability to drop, in [0, 1). Defaults to 0.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(
                f'drop_prob must be in [0, 1), but got {drop_prob}.'
            )
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        """Scale the kept samples of ``x`` by ``1 / (1 - drop_prob)``.

        Args:
            x (Tensor): Packed rows, ``(sum_b L_b, C)``.
            lengths (list[int]): Rows of each sample.
        """
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(len(lengths)).bernoulli_(keep) / keep
        # Without waiting for a GPU, which `device=x.device` would.
        rows = torch.tensor(lengths).to(x.device, non_blocking=True)
        return x * mask.repeat_interleave(rows, output_size=len(x))[:, None]

    def extra_repr(self) -> str:
        """Show the probability when the module is printed."""
        return f'drop_prob={self.drop_prob}'
