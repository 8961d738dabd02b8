"""The two linear layers of an encoder block."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import LinearCost


class MLP(nn.Module):
    """Linear, GELU, linear; works on any ``(..., C)``, packed or not.

    Args:
        embed_dims (int): Channels ``C``.
        hidden_dims (int): Channels in between.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(x)))

    def flops(self) -> LinearCost:
        """Multiply-adds: all of them are paid per query."""
        return LinearCost(0, 2 * self.fc1.in_features * self.fc1.out_features)
