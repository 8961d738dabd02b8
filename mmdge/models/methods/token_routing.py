"""Dynamic token routing: a grid of cells, where each token finds its way.

A row of the grid is a scale, a column a stack of blocks. In each node every
token is computed by the row's next stack or skips it, and every image also
falls to the next scale or does not::

    node --linear--> logits of compute and skip, token by token    score
    node --mean, linear--> those of the path down, image by image
    --argmax--> open tokens, open paths                            decide
    --pack--> rows --block, block, block--> rows             rows, update
    --scatter--> the map, + what falls from the scale above       scatter
    FLOPs of the rows, share of each token and path                  cost

What is closed is not computed, in training neither. So a closed gate has no
gradient from the task in that step: it learns from the budget loss, from the
other tokens, and from the noise, which opens it now and then.

In a cell all tokens of an image are keys, those that skip it with the
features they have; images without any open token are left out. The depthwise
convolution sees 0 where a token skips the cell, as at the map's border: its
hidden features are not computed.

Source: Dynamic Token Routing (Ma et al., 2308.03409), section 3. Where it
says nothing, what is done here is said here and in
:class:`mmdge.TokenRoutingPVT`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmdge.utils import UserError

from ..cost import ComputeMap, Cost, LinearCost
from ..layers import Block, PatchEmbed
from ..layers.block import MapLayer
from ..routing import (
    AveragedGate,
    GumbelRouter,
    RandomRouter,
    Router,
    build_router,
)
from ..routing.router import STATIC
from ..routing.rows import Rows, pack, scatter, select
from .base import Method


class Cell(nn.Module):
    """A stack of blocks, numbered as in a list, and its gate."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        for number, block in enumerate(blocks):
            self.add_module(str(number), block)

    @property
    def blocks(self) -> list[Block]:
        """The stack."""
        return [part for part in self.children() if isinstance(part, Block)]

    def flops(self, size: tuple[int, int]) -> LinearCost:
        """Of an image with an open token, and of each open one."""
        costs = [block.flops(size, 0) for block in self.blocks]
        return sum(costs, LinearCost(0, 0))


@dataclass
class Row:
    """A scale, while images run through the grid.

    Attributes:
        size (tuple[int, int]): Of its maps, ``(H, W)``.
        valid (Tensor): Tokens that are no padding, ``(B, H, W)``, bool.
        dynamic (Tensor): Multiply-adds so far, ``(B,)``.
        tokens (Tensor | None): The current node, ``(B, H * W, C)``, 0 for
            images that have not come to it; None: none has.
        images (list[int]): Those that have.
        paths (list[ComputeMap]): Of the gates of the paths to it.
        cells (list[ComputeMap]): Of its cells'.
    """

    size: tuple[int, int]
    valid: Tensor
    dynamic: Tensor
    tokens: Tensor | None = None
    images: list[int] = field(default_factory=list)
    paths: list[ComputeMap] = field(default_factory=list)
    cells: list[ComputeMap] = field(default_factory=list)

    def add(self, images: list[int], tokens: Tensor) -> None:
        """Add to the node what comes to it, ``(b, H * W, C)``."""
        if len(images) < len(self.dynamic):
            zeros = tokens.new_zeros(len(self.dynamic), *tokens.shape[1:])
            tokens = put(zeros, images, tokens)
        self.tokens = tokens if self.tokens is None else self.tokens + tokens
        self.images = sorted({*self.images, *images})

    def arrived(self) -> Tensor:
        """1 for images that have come to it, else 0, ``(B,)``."""
        ones = self.dynamic.new_ones(len(self.images))
        return put(torch.zeros_like(self.dynamic), self.images, ones)


def take(x: Tensor, images: list[int]) -> Tensor:
    """Those images of ``(B, ...)``."""
    return x if len(images) == len(x) else x.index_select(0, _at(images, x))


def put(x: Tensor, images: list[int], values: Tensor) -> Tensor:
    """``(B, ...)`` with other values ``(b, ...)`` for those images."""
    values = values.to(x.dtype)
    if len(images) == len(x):
        return values
    return x.index_copy(0, _at(images, x), values)


def _at(images: list[int], like: Tensor) -> Tensor:
    index = torch.tensor(images, dtype=torch.long)
    return index.to(like.device, non_blocking=True)


class TaughtGate(torch.autograd.Function):
    """Tokens as they are, which give the gate a gradient.

    ``gate * computed + (1 - gate) * skipped`` where the gate is 0 or 1, and
    its gradient; what would have been computed of a token that skips is not
    known, and its gate gets none.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, gate: Tensor, before: Tensor
    ) -> Tensor:
        """Of ``(B, N, C)`` after and before a cell, ``gate (B, N)``."""
        ctx.save_for_backward(tokens, before)
        ctx.dtype = gate.dtype
        return tokens.view_as(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """See :class:`torch.autograd.Function`."""
        tokens, before = ctx.saved_tensors
        effect = torch.linalg.vecdot(
            gradient.to(ctx.dtype), (tokens - before).to(ctx.dtype)
        )
        return gradient, effect, None


class TokenRouting(Method):
    """Dynamic token routing on a pyramid with embeddings between its stages.

    Attributes:
        columns (int): Cells of each row; 0: there is no grid, but the plain
            architecture.
    """

    columns = 0

    @property
    def varying(self) -> str:
        """See :class:`Method`."""
        return (self.columns > 0) * (
            'each image finds its own way through the grid, and cells that '
            'none of its tokens enters are left out'
        )

    def add_grid(
        self, routing: str | dict, price: float, gate_init: str
    ) -> None:
        """Unroll the stages to a grid, see :class:`mmdge.TokenRoutingPVT`."""
        if gate_init not in ('diagonal', 'open'):
            raise UserError(
                f"gate_init must be 'diagonal' or 'open', but got "
                f'{gate_init!r}.'
            )
        self.cells = [1] * self.max_stages
        if routing in STATIC:
            return
        self.columns = self.max_stages
        for i in range(self.num_stages):
            name = f'block{i + 1}'
            stack = getattr(self, name)
            cells = [Cell(copy.deepcopy(stack)) for _ in range(self.columns)]
            for j, cell in enumerate(cells):
                for number, block in enumerate(cell.blocks):
                    block.name = f'{name}.{j}.{number}'
            setattr(self, name, nn.ModuleList(cells))
            if i:
                name = f'patch_embed{i + 1}'
                embed = getattr(self, name)
                paths = [copy.deepcopy(embed) for _ in range(self.columns + 1)]
                setattr(self, name, nn.ModuleList(paths))
        self._init_parameters()  # no two columns alike
        dims = self.arch['embed_dims']
        for i in range(self.num_stages):
            for j, cell in enumerate(getattr(self, f'block{i + 1}')):
                opened = gate_init == 'open' or i == j
                cell.router = make_gate(routing, dims[i], price, opened)
            for j, path in enumerate(self.paths(i)):
                path.router = None
                if i != j:
                    opened = gate_init == 'open'
                    path.router = make_gate(
                        routing, dims[i - 1], price, opened
                    )
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def paths(self, stage: int) -> Sequence[PatchEmbed]:
        """The paths to a row, column by column of nodes; none to the first."""
        return getattr(self, f'patch_embed{stage + 1}') if stage else ()

    @property
    def stages(self) -> Sequence[Sequence[Block]]:
        """The blocks of the dense twin, stage by stage: the diagonal."""
        if not self.columns:
            return super().stages
        return [
            getattr(self, f'block{i + 1}')[i].blocks
            for i in range(self.num_stages)
        ]

    def embedding(self, stage: int) -> PatchEmbed:
        """That of a stage of the dense twin: on the diagonal."""
        if not self.columns or not stage:
            return super().embedding(stage)
        return self.paths(stage)[stage]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """See :class:`mmdge.models.architectures.PVT`."""
        if self.dense or not self.columns:
            return super().forward(x)
        self.check_images(x)
        if self.training:
            for gate in self.routers:
                if isinstance(gate, AveragedGate):
                    gate.remember()
        rows = self._rows(x)
        rows[0].add([*range(len(x))], self.embedding(0)(x)[0])
        unused = []
        for j in range(self.columns + 1):
            for i, row in enumerate(rows):
                if j:
                    cell = getattr(self, f'block{i + 1}')[j - 1]
                    name = f'block{i + 1}.{j - 1}'
                    if not self._compute(cell, row, self.strides[i], name):
                        unused.append(cell)
                if i:
                    path, name = self.paths(i)[j], f'patch_embed{i + 1}.{j}'
                    norm = getattr(self, f'norm{i}')
                    if not self._fall(path, norm, rows[i - 1], row, x, name):
                        unused.append(path)
        outs = []
        for i in self.out_indices:
            out = getattr(self, f'norm{i + 1}')(rows[i].tokens)
            # (B, H * W, C) -> (B, C, H, W)
            outs.append(out.unflatten(1, rows[i].size).permute(0, 3, 1, 2))
        if torch.is_grad_enabled():
            # What no image took, and what led to no output that is used, gets
            # a gradient of 0, as DDP wants it. The last output is used.
            left = [p.flatten()[0] for m in unused for p in m.parameters()]
            ends = [row.tokens[:, 0, 0] for row in rows[:-1]]
            tie = torch.zeros_like(outs[-1][:, 0, 0, 0]) + sum(left + ends)
            outs[-1] = outs[-1] + 0 * tie[:, None, None, None]
        self.cost = Cost.of_stages(
            [self._cost(i, row) for i, row in enumerate(rows)]
        )
        return tuple(outs)

    def _rows(self, x: Tensor) -> list[Row]:
        mask = self.valid_mask(x)
        rows = []
        for i, size in enumerate(self._sizes(x.shape[-2:])):
            valid = self.valid_cells(mask, i, size)
            flops = 0 if i else self.embedding(0).flops(size)
            dynamic = Cost.constant(flops, len(x), x.device).dynamic
            rows.append(Row(size, valid, dynamic))
        return rows

    def _sizes(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Of the maps of an image of ``size (H, W)``."""
        return [
            tuple(-(-side // stride) for side in size)
            for stride in self.strides
        ]

    def _cost(self, stage: int, row: Row) -> Cost:
        flops = self._dense_flops(stage, row.size)
        dense = Cost.constant(flops, len(row.dynamic), row.dynamic.device)
        return Cost(row.dynamic, dense.dense, (*row.paths, *row.cells))

    def _dense_flops(self, stage: int, size: tuple[int, int]) -> int:
        num, blocks = math.prod(size), self.stages[stage]
        flops = sum(block.flops(size, 0).at(num) for block in blocks)
        return flops + self.embedding(stage).flops(size)

    def least_ratio(self, size: Sequence[int]) -> float:
        """See :class:`Backbone`."""
        if not self.columns:
            return super().least_ratio(size)
        least = dense = 0
        for i, grid in enumerate(self._sizes(size)):
            dense += self._dense_flops(i, grid)
            least += self.embedding(i).flops(grid)
            # Nodes that an image has come to decide, even if not to go on.
            for cell in getattr(self, f'block{i + 1}')[i:]:
                least += cell.router.flops().at(math.prod(grid))
            for path in [*self.paths(i)][max(0, i - 1) :]:
                least += path.router.flops().at(1) if path.router else 0
        return least / dense

    def _compute(self, cell: Cell, row: Row, stride: int, name: str) -> bool:
        """Run a cell on the open tokens of its row; whether there are any."""
        num = math.prod(row.size)
        gate = row.valid.new_zeros(row.valid.shape, dtype=torch.float32)
        lengths = [0]
        if row.images:
            grid = row.tokens.unflatten(1, row.size)  # (B, H, W, C)
            gate = decide(cell.router, grid, row.images, row.valid)
            (rows,) = select(gate.detach().flatten(1) > 0.5)
            lengths = rows.lengths
            flops, counts = cell.flops(row.size), gate.double().sum((1, 2))
            # What is fixed is paid by images with an open token. Its gradient
            # is as if it were paid by the token.
            paid = counts / num
            paid = (rows.counts > 0) + (paid - paid.detach())
            routing = cell.router.flops().at(num) * row.arrived()
            row.dynamic = (
                row.dynamic
                + flops.per_row * counts
                + flops.fixed * paid
                + routing
            )
        row.cells.append(ComputeMap(gate, stride, name, row.valid))
        if not any(lengths):
            return False
        tokens = self._update_open(cell, row, rows)
        if gate.requires_grad:
            tokens = TaughtGate.apply(tokens, gate.flatten(1), row.tokens)
        row.tokens = tokens
        return True

    def _update_open(self, cell: Cell, row: Row, rows: Rows) -> Tensor:
        """Update open tokens by a cell, ``(B, N, C)``."""
        images = [b for b, length in enumerate(rows.lengths) if length]
        lengths = [rows.lengths[b] for b in images]
        tokens = take(row.tokens, images)
        shift = row.tokens.shape[1]
        if lengths == [shift] * len(lengths):
            chosen = None
        else:
            index = rows.index
            if len(images) < len(rows.lengths):
                # Where the rows are without the images that are left out.
                left_out = torch.tensor(images) - torch.arange(len(images))
                shifts = (left_out * shift).repeat_interleave(
                    torch.tensor(lengths)
                )
                index = index - shifts.to(index, non_blocking=True)
            chosen = Rows(index, lengths, rows.counts)
        for block in cell.blocks:
            tokens = block(tokens, row.size, partial(self._run, rows=chosen))
        return put(row.tokens, images, tokens)

    def _run(
        self,
        block: Block,
        tokens: Tensor,
        size: tuple[int, int],
        rows: Rows | None,
    ) -> Tensor:
        if rows is None:
            return self.run(block.update_all, tokens, size)
        return self.run(partial(update_open, block), tokens, size, rows)

    def _fall(
        self,
        path: PatchEmbed,
        norm: nn.Module,
        row: Row,
        below: Row,
        x: Tensor,
        name: str,
    ) -> bool:
        """Embed a node's map for the row below; whether any image falls."""
        images, gate = row.images, None
        if path.router is not None:
            share = x.new_zeros(len(x), 1, 1, dtype=torch.float32)
            if images:
                mean = mean_over(row.tokens, row.valid)  # (B, 1, 1, C)
                valid = torch.ones_like(share, dtype=torch.bool)
                share = decide(path.router, mean, images, valid)
                gate = share.flatten()  # (B,)
                opened = (gate.detach() > 0.5).tolist()
                images = [b for b, falls in enumerate(opened) if falls]
                routing = path.router.flops().at(1) * row.arrived()
                flops = path.flops(below.size) * gate.double()
                below.dynamic = below.dynamic + routing + flops
            cell = max(x.shape[-2:])  # the image
            below.paths.append(
                ComputeMap(share, cell, name, torch.ones_like(share) > 0)
            )
        else:
            below.dynamic = below.dynamic + path.flops(below.size)
        if not images:
            return False
        tokens = norm(take(row.tokens, images))
        # (b, H * W, C) -> (b, C, H, W)
        maps = tokens.unflatten(1, row.size).permute(0, 3, 1, 2)
        tokens, _ = path(maps)
        if gate is not None and gate.requires_grad:
            factor = take(gate, images)[:, None, None]
            tokens = tokens * factor.to(tokens.dtype)
        below.add(images, tokens)
        return True


def make_gate(
    routing: str | dict, dims: int, price: float, opened: bool
) -> Router:
    """A gate of maps of so many channels, open or closed at first."""
    config = routing
    if routing in ('learned', 'gumbel'):
        config = dict(type=AveragedGate.__name__)
    gate = build_router(config, dims, (1.0, 0.0), 1, price)
    if not isinstance(gate, (GumbelRouter, RandomRouter)):
        raise UserError(
            f"routing={routing!r} must be 'learned', 'random' or 'finest', or "
            'the config of an AveragedGate or a RandomRouter.'
        )
    if isinstance(gate, GumbelRouter) and 'init_finest' not in config:
        gate.init_finest = 0.95 if opened else 0.05
        gate.reset_parameters()
    return gate


def decide(
    gate: Router, grid: Tensor, images: list[int], valid: Tensor
) -> Tensor:
    """1 for the open cells of some images, else 0, with its gradient.

    Args:
        gate (Router): Of two candidates: compute, and skip.
        grid (Tensor): A map ``(B, H, W, C)``.
        images (list[int]): Those for which it decides.
        valid (Tensor): Cells that are no padding, ``(B, H, W)``, bool.

    Returns:
        Tensor: ``(B, H, W)``, float32; 0 for padding and other images.
    """
    decision = gate(take(grid, images), take(valid, images))
    closed = valid.new_zeros(valid.shape, dtype=torch.float32)
    if decision is None:  # before a warm-up
        opened = torch.ones_like(take(closed, images))
    elif decision.gate is None:
        opened = decision.choice == 0
    else:
        opened = decision.gate[..., 0]
    return put(closed, images, opened * take(valid, images))


def mean_over(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``(B, H * W, C)`` without padding, as a map ``(B, 1, 1, C)``."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    inside = valid.flatten(1)[..., None].to(dtype)
    mean = (tokens.to(dtype) * inside).sum(1) / inside.sum(1)
    return mean[:, None, None]


def update_open(
    block: Block, x: Tensor, size: tuple[int, int], rows: Rows
) -> Tensor:
    """Update the rows of ``(B, N, C)``; the others are but seen."""
    base, source, context = block.prepare(x, size)
    on_map = partial(on_open_map, shape=(len(x), *size), rows=rows)
    packed = pack([source], [rows])
    update = block.update(packed, rows.lengths, context, on_map)
    if base is not source:
        packed = pack([base], [rows])
    return scatter(base, rows, packed + update)


def on_open_map(
    layer: MapLayer, packed: Tensor, shape: tuple[int, int, int], rows: Rows
) -> Tensor:
    """Run a layer on packed rows of maps ``(B, H, W)``, 0 elsewhere."""
    hidden = layer.before(packed)  # (sum_b L_b, C_h)
    maps = hidden.new_zeros(math.prod(shape), hidden.shape[-1])
    maps.index_copy_(0, rows.index.long(), hidden)  # in place: it is large
    mixed = layer.on_map(maps.unflatten(0, shape)).flatten(0, 2)
    return layer.after(mixed.index_select(0, rows.index))
