"""What a dynamic backbone computed: the :class:`Cost` record.

Unit everywhere: FLOPs are multiply-adds, the convention of the DGE and PVT
papers. Counted: convolutions, linear layers, both attention products. Not
counted: norms, softmax, activations, pooling, gathers. The formulae stand
beside the layers that they describe, as ``flops`` methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class LinearCost(NamedTuple):
    """FLOPs of one image as a linear function of its rows.

    Attributes:
        fixed (int): FLOPs that every image pays, whatever its rows.
        per_row (int): FLOPs of each row.
    """

    fixed: int
    per_row: int

    def __add__(self, other: LinearCost) -> LinearCost:
        return LinearCost(
            self.fixed + other.fixed, self.per_row + other.per_row
        )

    def at(self, num_rows):
        """FLOPs of ``num_rows`` (int or tensor, result likewise)."""
        return self.fixed + self.per_row * num_rows


@dataclass(frozen=True)
class ComputeMap:
    """What each cell of one decision got.

    Attributes:
        share (Tensor): Share of the dense compute, ``(B, h, w)``, in [0, 1];
            in training with its graph, if there is one.
        cell (int): Side of a cell in pixels of the input.
        name (str): The decision, for reports, e.g. ``'block3.0'``.
        valid (Tensor | None): Cells that are no padding, ``(B, h, w)``, bool;
            None is all.
        target (float | None): Mean share that a loss should lead to; None
            where the budget is the whole backbone's.
    """

    share: Tensor
    cell: int
    name: str = ''
    valid: Tensor | None = None
    target: float | None = None

    @property
    def shows_place(self) -> bool:
        """Whether it has several cells, so that it tells where."""
        return self.share[0].numel() > 1

    @property
    def mean(self) -> Tensor:
        """Mean share over an image's valid cells, ``(B,)``."""
        return (self._weight * self.share.flatten(1)).sum(1)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the share over those cells, ``(B,)``."""
        deviation = self.share.flatten(1) - self.mean[:, None]
        return (self._weight * deviation.square()).sum(1).sqrt()

    @property
    def _weight(self) -> Tensor:
        inside = torch.ones_like(self.share).flatten(1)  # (B, h * w)
        if self.valid is not None:
            inside = self.valid.flatten(1).to(inside)
        return inside / inside.sum(1, keepdim=True)


@dataclass(frozen=True)
class Cost:
    """FLOPs of each image through a backbone or a part of it.

    Attributes:
        dynamic (Tensor): Multiply-adds that ran, routers included, ``(B,)``
            float64. In training it is differentiable through the gates.
        dense (Tensor): Multiply-adds of the plain backbone, without routers,
            ``(B,)`` float64.
        maps (tuple[ComputeMap]): What was decided, decision by decision.
        stages (tuple[Cost]): The parts, stage by stage, for reports.
    """

    dynamic: Tensor
    dense: Tensor
    maps: tuple[ComputeMap, ...] = ()
    stages: tuple[Cost, ...] = ()

    @classmethod
    def constant(
        cls, flops: int, batch_size: int, device: torch.device
    ) -> Cost:
        """The cost of a part which does the same for every image."""
        flops = torch.full(
            (batch_size,), flops, dtype=torch.float64, device=device
        )
        return cls(dynamic=flops, dense=flops)

    @classmethod
    def of_stages(cls, stages: list[Cost]) -> Cost:
        """Add up the stages of a backbone and keep them for reports."""
        return replace(cls.add_up(stages), stages=tuple(stages))

    @classmethod
    def add_up(cls, costs: list[Cost]) -> Cost:
        """Add up costs of the same images: parts, or several forwards."""
        return cls(
            dynamic=torch.stack([c.dynamic for c in costs]).sum(0),
            dense=torch.stack([c.dense for c in costs]).sum(0),
            maps=tuple(m for c in costs for m in c.maps),
        )

    @property
    def ratio(self) -> Tensor:
        """Dynamic over dense FLOPs of each image, ``(B,)``."""
        return self.dynamic / self.dense

    @property
    def region_spread(self) -> Tensor:
        """How much decisions differ from cell to cell, ``(B,)``.

        The standard deviation, over an image's cells but for padding, of the
        share of the dense compute that a cell got, averaged over the
        decisions. 0 means that every cell of a decision got the same answer:
        a collapsed router, a layer-drop in disguise.
        """
        if not self.maps:
            return torch.zeros_like(self.dense)
        return torch.stack([m.spread for m in self.maps]).mean(0)

    def detach(self) -> Cost:
        """The same record without a graph."""
        return replace(
            self,
            dynamic=self.dynamic.detach(),
            dense=self.dense.detach(),
            maps=tuple(replace(m, share=m.share.detach()) for m in self.maps),
            stages=tuple(stage.detach() for stage in self.stages),
        )
