"""What every method adds to an architecture: routers, and when to use them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdge.utils import UserError

from ..exporting import exporting
from ..layers import TransformerBlock, add
from ..layers.transformer import packed_attention
from ..routing import Router


class Method:
    """Base of the methods, each to be mixed into an architecture.

    ``class DGEPVT(Granularity, PVT)``: the method overrides
    :meth:`Backbone.run_blocks`; it knows an architecture by its ``stages`` of
    blocks and its ``strides``. What else it needs it says itself.

    Attributes:
        cells (list[int]): Side of a decision's cell in tokens, stage by
            stage.
        varying (str): Why shapes cannot be constant, and no graph can be
            exported, as the end of a sentence; empty where they can, see
            :func:`mmdge.calibration.fix_shapes`.
    """

    cells: list[int]
    varying = ''

    @property
    def routers(self) -> list[Router]:
        """The decisions, in their order."""
        return list(self.routers_by_name().values())

    def routers_by_name(self) -> dict[str, Router]:
        """The routers and their names in the state dict."""
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, Router)
        }

    def reset_parts(self) -> None:
        """See :class:`Backbone`."""
        super().reset_parts()
        for router in self.routers:
            router.reset_parameters()

    def train(self, mode: bool = True) -> Method:
        """Set the mode; frozen stages stay in eval mode, not their routers.

        Noise, warm-up and remembered scores are no parameters.
        """
        super().train(mode)
        for router in self.routers:
            router.train(mode)
        return self

    def valid_mask(self, x: Tensor) -> Tensor | None:
        """Where images are no padding, in the finest cells of all stages.

        Padding is what is 0 in all channels: the hosts pad with zeros, after
        they have normalised.

        Args:
            x (Tensor): Images, ``(B, C, H, W)``.

        Returns:
            Tensor | None: ``(B, ceil(H / side), ceil(W / side))``, 1 where a
            cell of :attr:`mask_side` pixels holds any of the image, else 0.
            None if nothing is routed.
        """
        if self.dense or not self.routers:
            return None
        if torch.jit.is_tracing():
            raise UserError(
                'a routed backbone cannot be traced, because what runs '
                'depends on the image; torch.export can export it, and its '
                'dense twin, inside backbone.as_dense_twin(), can be traced'
            )
        if exporting() and self.varying:
            raise UserError(
                f'{type(self).__name__} cannot be exported: {self.varying}'
            )
        pixels = x.detach().ne(0).any(1, keepdim=True).float()
        return F.max_pool2d(pixels, self.mask_side, ceil_mode=True)[:, 0]

    @property
    def mask_side(self) -> int:
        """Side in pixels that divides the cells of all stages."""
        sides = zip(self.strides, self.cells, strict=False)
        return math.gcd(*(stride * cell for stride, cell in sides))

    def valid_cells(
        self, mask: Tensor | None, stage: int, grid: tuple[int, int]
    ) -> Tensor | None:
        """Which cells of a stage hold any of the image, and not just padding.

        Args:
            mask (Tensor | None): See :meth:`valid_mask`; None passes.
            stage (int): Number of the stage.
            grid (tuple[int, int]): Rows and columns of its cells.

        Returns:
            Tensor | None: ``(B, *grid)``, bool. An image without any content
            counts as valid throughout.
        """
        if mask is None:
            return None
        side = self.strides[stage] * self.cells[stage] // self.mask_side
        pooled = F.max_pool2d(mask[:, None], side, ceil_mode=True)[:, 0]
        valid = pooled[:, : grid[0], : grid[1]] > 0
        return valid | ~valid.flatten(1).any(1)[:, None, None]

    def update_packed(
        self,
        block: TransformerBlock,
        rows: Tensor,
        size: tuple[int, int],
        lengths: list[int],
        attend: Callable = packed_attention,
    ) -> Tensor:
        """Update packed rows ``(sum_b L_b, C)``, which are all there is.

        Arguments as of :meth:`TransformerBlock.update`.
        """

        def update(rows: Tensor) -> Tensor:
            context = block.prepare(rows, size, lengths).context
            update = block.update(
                rows, lengths, context, attend=attend, normed=context.normed
            )
            return add(rows, update, out=update)

        return self.run(update, rows)
