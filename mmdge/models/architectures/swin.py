"""Swin, the shifted window transformer (Liu et al., ICCV 2021)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import Cost
from ..layers import PatchEmbed, SwinBlock
from ..weights import FAST_PATH, HEAD, PREDICTOR, ROUTER, Layout
from .base import (
    Backbone,
    check_arguments,
    check_out_indices,
    drop_path_rates,
    look_up,
)

NUM_STAGES, PATCH_SIZE, MLP_RATIO = 4, 4, 4


class PatchMerging(nn.Module):
    """Four tokens, two by two, to one of twice the channels.

    Args:
        embed_dims (int): Channels ``C`` of the tokens that come in.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.norm = nn.LayerNorm(4 * embed_dims, eps=1e-5)
        self.reduction = nn.Linear(4 * embed_dims, 2 * embed_dims, bias=False)

    def forward(
        self, x: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(B, H * W, C)`` to ``(B, h * w, 2 * C)``, and ``(h, w)``.

        An odd border is completed with zeros.
        """
        x = x.unflatten(1, size)  # (B, H, W, C)
        bottom, right = (side % 2 for side in size)
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        # (B, H, W, C) -> (B, h, 2, w, 2, C) -> (B, h, w, 2, 2, C), columns
        # before rows
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        x = x.permute(0, 1, 3, 4, 2, 5)
        size = tuple(x.shape[1:3])
        return self.reduction(self.norm(x.flatten(3).flatten(1, 2))), size

    def flops(self, size: tuple[int, int]) -> int:
        """Multiply-adds of one image for a map that becomes ``size``."""
        return 8 * self.embed_dims**2 * math.prod(size)


class Swin(Backbone):
    """Swin (the first), equal to the hosts' ``SwinTransformer``.

    Parameters carry the names of the official code, but ``attn.qkv`` is
    ``attn.q`` and ``attn.kv``, and its classifier's ``norm`` is ``norm3``.
    Any image size runs: maps are padded to whole windows, as in the hosts,
    and a border narrower than a patch is completed with zeros. Absolute
    position embeddings, which no published weights have, are left out.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'``,
            or a dict with ``embed_dims``, of the first stage, and with
            ``depths`` and ``num_heads``, each of one value per stage.
            Defaults to ``'tiny'``.
        window_size (int): Side of a window in tokens. Defaults to 7.
        pad_small_map (bool): What becomes of a map whose shorter side is that
            of a window, or less: True: its windows are shifted as those of
            others, as in mmdet and mmseg; False: they are not, as in the
            official code and in mmpretrain, unless told otherwise. Both pad
            what is smaller to a window; the official code has a smaller
            window there, and mmpretrain refuses it. Defaults to True; for
            weights of a classifier, whose last map is one window, False is
            right.
        out_indices (int | Sequence[int]): Stages whose maps are returned,
            each normed, ascending, negative ones counted from the end; later
            stages are not built. Defaults to (0, 1, 2, 3), of strides 4, 8,
            16, 32.
        drop_path_rate (float): See :class:`PVT`. Defaults to 0.1.
        frozen_stages (int): 0: the patch embedding is not trained; above,
            neither are the first so many stages, with their norms and
            down-sampling; what their routers remember of images goes on.
            That is mmdet's and mmseg's count; mmpretrain's is one less.
            Defaults to -1: none.
        with_cp (bool): See :class:`PVT`. Defaults to False.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict, optional): See :class:`PVT`. Defaults to None.
    """

    arch_zoo = {
        'tiny': dict(
            embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)
        ),
        'small': dict(
            embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)
        ),
        'base': dict(
            embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)
        ),
        'large': dict(
            embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)
        ),
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        window_size: int = 7,
        pad_small_map: bool = True,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = look_up(arch, self.arch_zoo, {})
        lists = [arch['depths'], arch['num_heads']]
        if any(
            not isinstance(values, (list, tuple)) or len(values) != NUM_STAGES
            for values in lists
        ) or any(
            not isinstance(value, int) or value < 1
            for value in (arch['embed_dims'], *sum(map(list, lists), []))
        ):
            raise UserError(
                f'arch must give one positive integer to embed_dims, and '
                f'{NUM_STAGES} to each of depths and num_heads, but got '
                f'{arch}.'
            )
        if not isinstance(window_size, int) or window_size < 1:
            raise UserError(
                'window_size must be an integer of at least 1, but got '
                f'{window_size!r}.'
            )
        check_arguments('featmap', frozen_stages, NUM_STAGES)
        self.arch = arch
        self.window_size = window_size
        self.out_indices = check_out_indices(out_indices, NUM_STAGES)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.in_channels = in_channels
        # A stage that no output depends on would be trained by nothing.
        self.num_stages = self.out_indices[-1] + 1
        self.strides = [PATCH_SIZE * 2**i for i in range(self.num_stages)]

        dims, depths = arch['embed_dims'], arch['depths']
        drop_path = drop_path_rates(drop_path_rate, sum(depths))
        self.patch_embed = PatchEmbed(
            in_channels, dims, PATCH_SIZE, complete=True
        )
        self.layers = nn.ModuleList()
        for i in range(self.num_stages):
            blocks = nn.ModuleList(
                SwinBlock(
                    dims,
                    arch['num_heads'][i],
                    MLP_RATIO * dims,
                    window_size,
                    shift=window_size // 2 if j % 2 else 0,
                    pad_small_map=pad_small_map,
                    drop_path=drop_path.pop(0),
                    name=f'layers.{i}.blocks.{j}',
                )
                for j in range(depths[i])
            )
            layer = nn.ModuleDict(dict(blocks=blocks))
            if i in self.out_indices:
                self.add_module(f'norm{i}', nn.LayerNorm(dims, eps=1e-5))
            if i + 1 < self.num_stages:
                layer['downsample'] = PatchMerging(dims)
                dims *= 2
            self.layers.append(layer)

        self._init_parameters()
        for module in self.frozen_modules():
            module.requires_grad_(False)

    @property
    def stages(self) -> list[nn.ModuleList]:
        """The blocks, stage by stage."""
        return [layer['blocks'] for layer in self.layers]

    @property
    def max_stages(self) -> int:
        """See :class:`Backbone`."""
        return NUM_STAGES

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps and set :attr:`cost`.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``, any size.

        Returns:
            tuple[Tensor]: ``(B, C_i, H_i, W_i)`` of each stage in
            ``out_indices``; ``H_i, W_i`` are ``H, W`` over the stride, rounded
            up.
        """
        self.check_images(x)
        mask = self.valid_mask(x)
        outs, costs = [], []
        embed = self.patch_embed
        tokens, size = embed(x)
        for i, layer in enumerate(self.layers):
            size = tuple(map(int, size))  # tensors, where they are traced
            stream = [tokens]
            del tokens  # nobody else holds them while they are updated
            (tokens,), cost = self.run_blocks(
                i, stream.pop(), size, mask, [len(layer['blocks']) - 1]
            )
            embedding = Cost.constant(embed.flops(size), len(x), x.device)
            costs.append(Cost.add_up([embedding, cost]))
            if i in self.out_indices:
                out = self.get_submodule(f'norm{i}')(tokens)
                # (B, H * W, C) -> (B, C, H, W)
                outs.append(out.unflatten(1, size).permute(0, 3, 1, 2))
            if 'downsample' in layer:
                embed = layer['downsample']
                tokens, size = embed(tokens, size)
        self.cost = Cost.of_stages(costs)
        return tuple(outs)

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`Backbone`."""
        if self.frozen_stages < 0:
            return []
        norms = [
            self.get_submodule(f'norm{i}')
            for i in self.out_indices
            if i < self.frozen_stages
        ]
        layers = self.layers[: self.frozen_stages]
        return [self.patch_embed, *layers, *norms]

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, see :meth:`ViT.get_layer_depth`.

        As mmpretrain's: down-sampling goes with the block before it.
        """
        depths = [len(blocks) for blocks in self.stages]
        num_layers = sum(depths) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if param_name.startswith(prefix) and parts[0] == 'patch_embed':
            return 0, num_layers
        if not param_name.startswith(prefix) or parts[0] != 'layers':
            return num_layers - 1, num_layers
        stage = int(parts[1])
        if parts[2] == 'blocks':
            return sum(depths[:stage]) + int(parts[3]) + 1, num_layers
        return sum(depths[: stage + 1]), num_layers

    def new_parts(self) -> dict[str, nn.Module]:
        """See :class:`Backbone`; a classifier has no norms of inner maps."""
        return {
            f'norm{i}': self.get_submodule(f'norm{i}')
            for i in self.out_indices
        }

    @staticmethod
    def sizes_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """See :class:`Backbone`."""
        found = re.findall(
            r'layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight', '\n'.join(state)
        )
        stages = [int(stage) for stage, _ in found]
        first = state.get('layers.0.blocks.0.norm1.weight')
        return dict(
            depths=[stages.count(i) for i in sorted(set(stages))],
            embed_dims=[] if first is None else [len(first)],
        )

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Backbone`."""
        key = 'layers.0.blocks.0.attn.relative_position_bias_table'
        if key not in state:
            return {}
        return dict(window_size=(math.isqrt(len(state[key])) + 1) // 2)

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """How the entries of the stages begin that no output needs."""
        later = range(self.num_stages, NUM_STAGES)
        last = f'layers.{self.num_stages - 1}.downsample.'
        return (last, *(f'layers.{i}.' for i in later))


# The names that Swin's weights have in other code bases.
Swin.layouts = (
    Layout(  # mmdet's, mmseg's and mmpretrain's are one
        *('Swin', 'openmmlab', r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\..*'),
        rows=(
            ('patch_embed.projection.', 'patch_embed.proj.'),
            ('.attn.w_msa.qkv.', '.attn.q.', 'qkv'),
            ('.attn.w_msa.proj.', '.attn.proj.'),
            ('.attn.w_msa.relative_', '.attn.relative_'),
            ('.ffn.layers.0.0.', '.mlp.fc1.'),
            ('.ffn.layers.1.', '.mlp.fc2.'),
            ('.downsample.norm.', '.downsample.norm.', 'unfold'),
            ('.downsample.reduction.', '.downsample.reduction.', 'unfold'),
            ('stages.', 'layers.'),
        ),
        no_place=rf'{HEAD}|{ROUTER}|{PREDICTOR}|{FAST_PATH}',
        container='state_dict',
    ),
    Layout(
        *('Swin', 'official', r'layers\.\d+\.blocks\.\d+\.attn\.qkv\..*'),
        rows=(
            ('.attn.qkv.', '.attn.q.', 'qkv'),
            # The classifier's norm, but no other.
            ('.norm.', '.NORM.'),
            ('norm.', 'norm3.'),
            ('.NORM.', '.norm.'),
            ('layers.2.score_predictor.', 'score_predictor.'),
            ('.fastmlp.fc1.0.', '.fast_path.norm.'),
            ('.fastmlp.fc1.1.', '.fast_path.fc.'),
        ),
        no_place=rf'norm[0-2]\..*|{ROUTER}',
        container='model',
    ),
    Layout(
        'Swin',
        'mmdge',
        r'layers\.\d+\.blocks\.\d+\.attn\.q\..*',
        no_place=HEAD,
        container='state_dict',
    ),
)
