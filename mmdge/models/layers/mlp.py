"""The two linear layers of an encoder block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import LinearCost

# Hidden channels, in bytes, that a CPU computes together in inference. More
# would not stay in its caches, and from about 32 MB on the C library fetches
# them as fresh pages each time, which takes longer than the products.
CACHE_BYTES = 4 * 2**20


class MLP(nn.Module):
    """Linear, GELU, linear, on packed rows.

    Args:
        embed_dims (int): Channels ``C``.
        hidden_dims (int): Channels in between.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(L, C)`` to ``(L, C)``."""
        parts = self.num_parts(x)
        if parts == 1:
            return self._rows(x)
        return torch.cat([self._rows(part) for part in x.tensor_split(parts)])

    def _rows(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def num_parts(self, x: Tensor) -> int:
        """In how many parts the rows ``(L, C)`` are computed.

        One for a GPU, and where gradients are wanted.
        """
        if x.device.type != 'cpu' or torch.is_grad_enabled():
            return 1
        hidden = len(x) * self.fc1.out_features * x.element_size()
        return max(1, -(-hidden // CACHE_BYTES))

    def flops(self) -> LinearCost:
        """Multiply-adds: all of them are paid per query."""
        return LinearCost(0, 2 * self.fc1.in_features * self.fc1.out_features)
