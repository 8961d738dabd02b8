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

    def draw(self, batch_size: int, like: Tensor) -> Tensor | None:
        """Decide which samples to keep.

        Args:
            batch_size (int): Number of samples ``B``.
            like (Tensor): Gives type and device.

        Returns:
            Tensor | None: Each sample's factor, 0 or ``1 / (1 - drop_prob)``,
            ``(B,)``; None for 1 throughout, as in evaluation.
        """
        if not self.training or not self.drop_prob:
            return None
        keep = 1 - self.drop_prob
        return like.new_empty(batch_size).bernoulli_(keep) / keep

    def forward(
        self, x: Tensor, factor: Tensor | None, lengths: list[int]
    ) -> Tensor:
        """Scale the samples.

        Args:
            x (Tensor): Packed rows, ``(sum_b L_b, C)``.
            factor (Tensor | None): See :meth:`draw`.
            lengths (list[int]): Rows of each sample.
        """
        if factor is None:
            return x
        if len(set(lengths)) == 1:
            # (B * L, C) -> (B, L * C)
            return (x.view(len(factor), -1) * factor[:, None]).view_as(x)
        # Without waiting for a GPU, which `device=x.device` would.
        rows = torch.tensor(lengths).to(x.device, non_blocking=True)
        return x * factor.repeat_interleave(rows, output_size=len(x))[:, None]

    def extra_repr(self) -> str:
        """Show the probability when the module is printed."""
        return f'drop_prob={self.drop_prob}'
