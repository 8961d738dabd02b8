"""Dynamic token routing (Ma et al., 2308.03409) on PVTv2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdge.registry import MODELS

from ..architectures import PVTv2
from ..methods import TokenRouting
from ..weights import HEAD, Layout

_GRID = r'block\d\.\d+\.\d+\..*'


@MODELS.register_module()
class TokenRoutingPVT(TokenRouting, PVTv2):
    """PVTv2 unrolled to a grid in which tokens find their way.

    The paper calls it DiT. Row ``i`` of the grid is a scale, of strides 4, 8,
    16, 32; it has a stack of PVTv2's blocks of that stage in each of four
    columns, of weights of their own, and down paths, PVTv2's embeddings,
    before, between and after them. In each stack a token is computed or
    skips it, each path an image takes or does not; what is closed is not
    computed, in training neither; nor is padding, what is 0 in all channels.
    Outputs are the rows' last nodes.

    ``routing='finest'`` is its dense twin, the plain PVTv2, of its size and
    names. As a grid has them, it is the diagonal: the stack of column ``i``
    in row ``i``. FLOPs are relative to it, as in the paper: a grid of which
    all is open has a ratio of about 4. The path to a row's node on the
    diagonal is always open, so that each output has one; it has no gate.

    Checkpoints of PVTv2 and MiT, of any layout, go to all columns. The dense
    twin takes the diagonal of a grid's.

    Args:
        arch (str | dict): See :class:`PVTv2`. Defaults to ``'b2'``.
        routing (str | dict): ``'learned'``: linear gates with noise in
            training and averaged weights at test, see :class:`AveragedGate`;
            ``'random'``, a control, or with another share, e.g.
            ``dict(type='RandomRouter', share=(0.3, 0.7))`` to open 30 % of
            tokens and paths (before a warm-up all are open); ``'finest'``:
            the dense twin. Defaults to ``'learned'``.
        price (float): At test a gate is open if ``logit_compute - price >=
            logit_skip``. Defaults to 0.
        gate_init (str): Where learned gates start. ``'diagonal'``: with a
            probability of 95 % as the dense twin, so that the weights of a
            PVTv2 are at test what they were, at its FLOPs; in training noise
            opens some of the rest, for about 1.2 times its FLOPs at first.
            ``'open'``: with 95 % all open, the paper's, which costs about 4
            times as much. Defaults to ``'diagonal'``.
        **kwargs: See :class:`PVTv2`; ``frozen_stages`` freezes rows.

    Example:
        >>> model = TokenRoutingPVT('b1').eval()
        >>> maps = model(torch.rand(1, 3, 224, 224))
        >>> [tuple(m.shape) for m in maps][0], model.cost.ratio.shape
        ((1, 64, 56, 56), torch.Size([1]))
    """

    def __init__(
        self,
        arch: str | dict = 'b2',
        routing: str | dict = 'learned',
        price: float = 0.0,
        gate_init: str = 'diagonal',
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_grid(routing, price, gate_init)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, see :meth:`PVT.get_layer_depth`.

        All columns of a row have that of the dense twin, as their weights
        come from it; a gate goes with its stack's first block, or its path.
        """
        name = param_name
        if self.columns:  # block1.3.0.norm1.bias -> block1.0.norm1.bias
            name = re.sub(r'\b(block\d)\.\d+\.router\b', r'\1.0', name)
            name = re.sub(r'\b(block\d)\.\d+\.(?=\d+\.)', r'\1.', name)
        return super().get_layer_depth(name, prefix)

    def adopt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`Backbone`; all columns get what they are copies of."""
        if not self.columns:
            return diagonal(state)
        if _is_grid(state):
            return dict(state)
        columns = dict(block=self.columns, patch_embed=self.columns + 1)
        grid = {}
        for key, value in state.items():
            found = re.fullmatch(r'(block|patch_embed)(\d)\.(.*)', key)
            if found is None or key.startswith('patch_embed1.'):
                grid[key] = value
                continue
            part, stage, rest = found.groups()
            for j in range(columns[part]):
                grid[f'{part}{stage}.{j}.{rest}'] = value
        return grid

    @staticmethod
    def sizes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Backbone`."""
        return PVTv2.sizes_of(diagonal(state))


def _is_grid(state: Mapping[str, Tensor]) -> bool:
    return any(re.fullmatch(_GRID, key) for key in state)


def diagonal(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A PVTv2's entries of those of a grid; others are as they are."""
    if not _is_grid(state):
        return dict(state)
    entries = {}
    for key, value in state.items():
        found = re.fullmatch(r'(block|patch_embed)(\d)\.(\d)\.(.*)', key)
        if found is None:
            entries[key] = value
            continue
        part, stage, column, rest = found.groups()
        if int(column) == int(stage) - 1 and not rest.startswith('router.'):
            entries[f'{part}{stage}.{rest}'] = value
    return entries


# Its own names; the first whose mark is found counts.
TokenRoutingPVT.layouts = (
    Layout(
        *('TokenRoutingPVT', 'mmdge', _GRID, (), HEAD, 'state_dict'),
    ),
    *PVTv2.layouts,
)
