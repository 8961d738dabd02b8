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
    """FLOPs of one image as a linear function of its query count.

    Attributes:
        fixed (int): FLOPs that every image pays, whatever its queries.
        per_query (int): FLOPs of each query.
    """

    fixed: int
    per_query: int

    def __add__(self, other: LinearCost) -> LinearCost:
        return LinearCost(
            self.fixed + other.fixed, self.per_query + other.per_query
        )

    def at(self, num_queries):
        """FLOPs at ``num_queries`` (int or tensor, result likewise)."""
        return self.fixed + self.per_query * num_queries


@dataclass(frozen=True)
class GranularityMap:
    """The granularity that each region of one block got.

    Attributes:
        granularity (Tensor): Patch side in tokens, ``(B, Rh, Rw)``, int.
        region_size (int): Side of a region in pixels of the input.
        name (str): The block, for reports, e.g. ``'block3.0'``.
        content (Tensor | None): Regions that are no padding, ``(B, Rh, Rw)``,
            bool; None is all.
    """

    granularity: Tensor
    region_size: int
    name: str = ''
    content: Tensor | None = None

    @property
    def query_share(self) -> Tensor:
        """Queries per token that each region asked for, ``(B, Rh, Rw)``."""
        return self.granularity.double().reciprocal().square()

    @property
    def spread(self) -> Tensor:
        """Standard deviation of that over an image's content, ``(B,)``."""
        share = self.query_share.flatten(1)  # (B, Rh * Rw)
        inside = torch.ones_like(share)
        if self.content is not None:
            inside = self.content.flatten(1).double()
        weight = inside / inside.sum(1, keepdim=True)
        mean = (weight * share).sum(1, keepdim=True)
        return (weight * (share - mean).square()).sum(1).sqrt()


@dataclass(frozen=True)
class Cost:
    """FLOPs of each image through a backbone or a part of it.

    Attributes:
        dynamic (Tensor): Multiply-adds that ran, routers included, ``(B,)``
            float64. In training it is differentiable through the gates.
        dense (Tensor): Multiply-adds of the plain backbone, without routers,
            ``(B,)`` float64.
        maps (tuple[GranularityMap]): The decision of each routed block.
        stages (tuple[Cost]): The parts, stage by stage, for reports.
    """

    dynamic: Tensor
    dense: Tensor
    maps: tuple[GranularityMap, ...] = ()
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
        """How much routing differs from region to region, ``(B,)``.

        The standard deviation, over an image's regions but for padding, of
        the queries per token that a region asked for, averaged over the
        routed blocks. 0 means that every region of a block got the same
        answer: a collapsed router, a layer-drop in disguise.
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
            stages=tuple(stage.detach() for stage in self.stages),
        )
