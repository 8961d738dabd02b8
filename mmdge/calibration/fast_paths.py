"""Fast paths in closed form: which linear layer is nearest to an MLP?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.models.layers import Block
from mmdge.models.methods import FastPath
from mmdge.models.methods.fast_path import LinearPath
from mmdge.utils import UserError

RIDGE = 1e-4  # of the mean square of an input


class _Sums:
    """What a regression of updates on normed rows needs of one block."""

    def __init__(self, block: Block) -> None:
        num = block.embed_dims + 1  # with a bias
        weight = block.fast_path.fc.weight
        self.inputs = weight.new_zeros(num, num, dtype=torch.float64)
        self.products = self.inputs[:, :-1].clone()
        self.energy = 0.0

    def add(self, rows: Tensor, updates: Tensor) -> None:
        """Add rows ``(..., C)``, normed, and their updates."""
        ones = F.pad(rows.flatten(0, -2).double(), (0, 1), value=1.0)
        updates = updates.flatten(0, -2).double()
        self.inputs += ones.T @ ones
        self.products += ones.T @ updates
        self.energy += updates.square().sum().item()

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """Weight ``(C, C)``, bias ``(C,)``, share of variance explained."""
        scale = self.inputs.diagonal()[:-1].mean() * RIDGE
        damped = self.inputs + scale * torch.eye(
            len(self.inputs), dtype=torch.float64, device=self.inputs.device
        )
        found = torch.linalg.solve(damped, self.products)  # (C + 1, C)
        explained = 2 * found * self.products - found * (self.inputs @ found)
        error = self.energy - explained.sum().item()
        mean = self.products[-1] / self.inputs[-1, -1]
        varying = self.energy - (mean * self.products[-1]).sum().item()
        share = 1 - error / max(varying, 1e-12)
        return found[:-1].T, found[-1], share


@torch.no_grad()
def fit_fast_paths(
    backbone: FastPath, batches: Iterable[Tensor]
) -> dict[str, float]:
    """Make each fast path the ridge regression of what its block adds.

    From the dense twin's tokens, without labels and without training.

    Args:
        backbone (FastPath): In evaluation mode.
        batches (Iterable[Tensor]): Preprocessed images ``(B, 3, H, W)``.

    Returns:
        dict[str, float]: Of each block, by its name, which share of the
        variance of its updates the fast path has, 1 being all.
    """
    blocks = [
        block
        for stage in backbone.stages
        for block in stage
        if hasattr(block, 'fast_path')
    ]
    for block in blocks:
        plain(block.fast_path)
    sums = [_Sums(block) for block in blocks]
    handles = [
        block.register_forward_pre_hook(partial(_watch, into=into))
        for block, into in zip(blocks, sums, strict=True)
    ]
    try:
        with backbone.as_dense_twin():
            for images in batches:
                backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    if not sums or not sums[0].inputs[-1, -1]:
        raise UserError('fast paths are fitted to images, but there are none.')
    shares = {}
    for block, found in zip(blocks, sums, strict=True):
        weight, bias, shares[block.name] = found.solve()
        block.fast_path.fc.weight.copy_(weight)
        block.fast_path.fc.bias.copy_(bias)
    return shares


def plain(path: LinearPath) -> None:
    """Leave norm and layer scale without an effect of their own."""
    path.norm.reset_parameters()
    for gamma in path.ls.parameters():
        nn.init.ones_(gamma)


def _watch(block: Block, args: tuple, into: _Sums) -> None:
    tokens, size = args[:2]
    prepared = block.prepare(tokens, size)
    updates = block.update_prepared(prepared, size)
    into.add(block.fast_path.norm(prepared.source), updates)
