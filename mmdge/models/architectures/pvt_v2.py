"""PVTv2 (Wang et al., CVMJ 2022).

SegFormer's encoder MiT (Xie et al., NeurIPS 2021) is a case of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..weights import HEAD, ROUTER, Layout
from .base import Backbone
from .pvt import PVT, ROUTED

_V2_SIZES = {
    'b0': dict(num_layers=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
    'b1': dict(num_layers=(2, 2, 2, 2)),
    'b2': dict(num_layers=(3, 4, 6, 3)),
    'b3': dict(num_layers=(3, 4, 18, 3)),
    'b4': dict(num_layers=(3, 8, 27, 3)),
}


class PVTv2(PVT):
    """Pyramid Vision Transformer v2, or Mix Transformer.

    Equal to ``mmdet.PyramidVisionTransformerV2``, which has no linear
    attention, and to ``mmseg.MixVisionTransformer``. Parameters carry the
    names of the official code. Any image size runs. There is no position
    embedding: the convolutions see the borders of the map.

    Args:
        arch (str | dict): ``'b0'`` to ``'b5'``; ``'b2-linear'``, which
            attends to 7 x 7 keys; ``'mit-b0'`` to ``'mit-b5'``, the encoder
            of SegFormer; or a dict with ``embed_dims``, ``num_layers``,
            ``num_heads``, ``mlp_ratios`` and ``sr_ratios``, each of one
            value per stage, and ``linear``, a bool. Defaults to ``'b2'``.
        out_indices (int | Sequence[int]): Stages whose maps are returned,
            normed. See :class:`PVT`, also for the following. Defaults to
            (0, 1, 2, 3), of strides 4, 8, 16, 32.
        drop_path_rate (float): Defaults to 0.1.
        frozen_stages (int): Defaults to -1, like 0 none.
        with_cp (bool): Defaults to False.
        in_channels (int): Defaults to 3.
        init_cfg (dict, optional): Defaults to None.
        norm_eps (float, optional): That of the hosts is 1e-6. Defaults to
            None.
    """

    arch_zoo = {
        **_V2_SIZES,
        'b5': dict(num_layers=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
        'b2-linear': dict(_V2_SIZES['b2'], linear=True),
        **{
            f'mit-{name}': dict(size, mlp_ratios=(4, 4, 4, 4))
            for name, size in _V2_SIZES.items()
        },
        'mit-b5': dict(num_layers=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
    }
    arch_defaults = dict(PVT.arch_defaults, linear=False)
    overlap, norm_after_stage, has_positions = True, True, False
    ffn_type = 'conv'

    def __init__(
        self,
        arch: str | dict = 'b2',
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__(
            arch,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            in_channels=in_channels,
            init_cfg=init_cfg,
            norm_eps=norm_eps,
        )

    def _init_parameters(self) -> None:
        super()._init_parameters()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)

    @staticmethod
    def sizes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Backbone`; PVTv2 and MiT differ in their MLPs alone."""
        sizes = Backbone.sizes_of(state)
        hidden = [
            state[key].shape[0]
            for key in sorted(state)
            if re.fullmatch(r'block\d\.0\.mlp\.fc1\.weight', key)
        ]
        pairs = zip(hidden, sizes['embed_dims'], strict=False)
        sizes['mlp_ratios'] = [
            a // b if a % b == 0 else a / b for a, b in pairs
        ]
        reduction = state.get('block1.0.attn.sr.weight')
        if reduction is not None:
            sizes['linear'] = [reduction.shape[-1] == 1]
        return sizes


# The names that its weights have in other code bases.
# The first whose marks are found counts.
_CONV = r'block\d\.\d+\.mlp\.dwconv\..*'
PVTv2.layouts = (
    Layout(
        *('PVTv2', 'mmdge', (_CONV, ROUTED), (), HEAD, 'state_dict'),
    ),
    Layout(  # and mmseg's MiT
        *('PVTv2', 'mmdet', r'layers\.\d\.1\.\d+\.ffn\.layers\.4\..*'),
        rows=(
            ('.attn.attn.in_proj_', '.attn.q.', 'qkv'),
            ('.attn.attn.out_proj.', '.attn.proj.'),
            ('.ffn.layers.0.', '.mlp.fc1.', 'conv'),
            ('.ffn.layers.1.', '.mlp.dwconv.dwconv.'),
            ('.ffn.layers.4.', '.mlp.fc2.', 'conv'),
            *(
                row
                for s in range(1, 5)
                for row in (
                    (f'layers.{s - 1}.0.projection.', f'patch_embed{s}.proj.'),
                    (f'layers.{s - 1}.0.norm.', f'patch_embed{s}.norm.'),
                    (f'^layers.{s - 1}.1.', f'^block{s}.'),
                    (f'^layers.{s - 1}.2.', f'^norm{s}.'),
                )
            ),
        ),
        no_place=rf'{HEAD}|{ROUTER}',
        container='state_dict',
    ),
    Layout(
        *(
            'PVTv2',
            'hf-segformer',
            r'encoder\.block\.\d\.\d+\.mlp\.dwconv\..*',
        ),
        rows=(
            ('.attention.self.query.', '.attn.q.'),
            ('.attention.self.key.', '.attn.k.'),
            ('.attention.self.value.', '.attn.v.'),
            ('.attention.self.sr.', '.attn.sr.'),
            ('.attention.self.layer_norm.', '.attn.norm.'),
            ('.attention.output.dense.', '.attn.proj.'),
            ('.layer_norm_1.', '.norm1.'),
            ('.layer_norm_2.', '.norm2.'),
            ('.mlp.dense1.', '.mlp.fc1.'),
            ('.mlp.dense2.', '.mlp.fc2.'),
            *(
                row
                for s in range(1, 5)
                for theirs in [f'encoder.patch_embeddings.{s - 1}.']
                for row in (
                    (f'{theirs}proj.', f'patch_embed{s}.proj.'),
                    (f'{theirs}layer_norm.', f'patch_embed{s}.norm.'),
                    (f'^encoder.block.{s - 1}.', f'^block{s}.'),
                    (f'^encoder.layer_norm.{s - 1}.', f'^norm{s}.'),
                )
            ),
        ),
        no_place=rf'{HEAD}|{ROUTER}',
    ),
    # MiT's of SegFormer's authors, too; a static one of ours.
    Layout('PVTv2', 'official', _CONV, (), ROUTER),
)
