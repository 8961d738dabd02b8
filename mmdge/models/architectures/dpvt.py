"""Deformable PVT, of vtpack, the official code of DGE (NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import DeformableBlock
from ..weights import HEAD, Layout
from .pvt import PVT


class DPVT(PVT):
    """PVT whose attention looks at four points per head around each token.

    See :class:`mmdge.models.layers.deformable.DeformableAttention`. Its cost
    is linear in the number of tokens. Any image size runs. No weights of it
    were published.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'medium'``, ``'large'``,
            or a dict with ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``mlp_ratios``, each of one value per stage. Defaults to
            ``'small'``.
        out_type (str): ``'featmap'``: maps of the stages ``out_indices``,
            without a final norm; ``'avg_featmap'``: the mean of the last
            map's normed tokens, ``(B, C)``. Defaults to ``'featmap'``.
        out_indices (int | Sequence[int]): See :class:`PVT`, also for the
            following. Defaults to (0, 1, 2, 3), of strides 4, 8, 16, 32.
        drop_path_rate (float): Defaults to 0.1.
        frozen_stages (int): Defaults to -1, like 0 none.
        with_cp (bool): Defaults to False.
        pretrain_img_size (int | tuple[int, int]): Defaults to 224.
        in_channels (int): Defaults to 3.
        init_cfg (dict, optional): Defaults to None.
        norm_eps (float, optional): Defaults to None: 1e-6 in blocks, 1e-5 of
            patches.
    """

    arch_defaults = {
        key: value
        for key, value in PVT.arch_defaults.items()
        if key != 'sr_ratios'
    }
    out_types = ('featmap', 'avg_featmap')

    def __init__(
        self,
        arch: str | dict = 'small',
        out_type: str = 'featmap',
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        init_cfg: dict | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__(
            arch,
            out_type=out_type,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            pretrain_img_size=pretrain_img_size,
            in_channels=in_channels,
            init_cfg=init_cfg,
            norm_eps=norm_eps,
        )

    def _block(self, i: int, drop_path: float, name: str) -> DeformableBlock:
        arch, dims = self.arch, self.arch['embed_dims'][i]
        hidden = int(dims * arch['mlp_ratios'][i])
        return DeformableBlock(
            dims, arch['num_heads'][i], hidden, drop_path, name
        )

    def _init_parameters(self) -> None:
        super()._init_parameters()
        self.reset_parts()

    def reset_parts(self) -> None:
        """See :class:`Backbone`; here where rows look at first."""
        for blocks in self.stages:
            for block in blocks:
                block.attn.reset_offsets()


_OFFSETS = r'block\d\.\d+\.attn\.offsets\..*'
DPVT.layouts = (Layout('DPVT', 'mmdge', _OFFSETS, (), HEAD, 'state_dict'),)
