"""What every dynamic backbone has in common."""

from __future__ import annotations

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..cost import Cost
from ..routing import Router


class DynamicBackbone(BaseModule):
    """Base of the dynamic backbones: a cost, routers, frozen stages.

    Attributes:
        cost (Cost | None): What the last forward computed; the one thing a
            backbone remembers between calls.
    """

    cost: Cost | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(B, 3, H, W)`` to ``(B, C_i, H_i, W_i)``; set ``cost``."""
        raise NotImplementedError

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` keeps from training."""
        return []

    @property
    def routers(self) -> list[Router]:
        """The routers of all blocks that route."""
        return [m for m in self.modules() if isinstance(m, Router)]

    def anneal(self, progress: float) -> None:
        """Move the routers between dense and their own target, in training.

        Evaluation always uses the target.

        Args:
            progress (float): 0: every region finest; 1: the routers' shares.
                A router that learns its amount (the paper's) ignores it.
        """
        for router in self.routers:
            router.train_progress = progress

    def train(self, mode: bool = True) -> DynamicBackbone:
        """Set the mode; frozen stages stay in eval mode.

        Returns:
            DynamicBackbone: Itself.
        """
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
            for child in module.modules():
                # Noise, warm-up and remembered scores are no parameters.
                if isinstance(child, Router):
                    child.train(mode)
        return self

    def __getstate__(self) -> dict:
        """Copies and pickles start without a cost, which may hold a graph."""
        return {**self.__dict__, 'cost': None}
