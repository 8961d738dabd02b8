"""ConvNeXt (Liu et al., CVPR 2022)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, LinearCost
from ..layers import Block, Prepared, in_parts, pad_to_patch
from ..layers.block import OnMap, Size
from ..weights import FAST_PATH, HEAD, PREDICTOR, ROUTER, Layout
from .base import (
    Backbone,
    check_arguments,
    check_out_indices,
    check_stages,
    drop_path_rates,
    look_up,
)


class Context(NamedTuple):
    """What rows of a :class:`ConvNeXtBlock` need: see :class:`Block`."""

    kept: tuple[Tensor | None]


class ConvNeXtBlock(Block):
    """A 7 x 7 depthwise convolution, and an MLP of what it gives.

    Each token is convolved; rows are norm and MLP of that, added to what was
    before the convolution.

    Args:
        embed_dims (int): Channels ``C``; the MLP has ``4 * C`` in between.
        layer_scale_init_value (float): Of the factor of each channel's
            update. Defaults to 1e-6; 0: none.
        drop_path (float): Probability to drop a sample's residual branch.
            Defaults to 0.
        name (str): For reports. Defaults to ``''``.
    """

    kernel_size = 7

    def __init__(
        self,
        embed_dims: int,
        layer_scale_init_value: float = 1e-6,
        drop_path: float = 0.0,
        name: str = '',
    ) -> None:
        super().__init__(embed_dims, drop_path, name)
        self.hidden_dims = 4 * embed_dims
        self.dwconv = nn.Conv2d(
            embed_dims,
            embed_dims,
            self.kernel_size,
            padding=self.kernel_size // 2,
            groups=embed_dims,
        )
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)
        self.pwconv1 = nn.Linear(embed_dims, self.hidden_dims)
        self.pwconv2 = nn.Linear(self.hidden_dims, embed_dims)
        self.gamma = None
        if layer_scale_init_value > 0:
            gamma = torch.full((embed_dims,), float(layer_scale_init_value))
            self.gamma = nn.Parameter(gamma)

    def prepare(self, x: Tensor, size: Size) -> Prepared:
        """Convolve the map of tokens ``(B, H * W, C)``, channels last."""
        # (B, C, H, W) -> (B, H * W, C)
        source = self.dwconv(_to_map(x, size)).flatten(2).transpose(1, 2)
        return Prepared(x, source, Context((self.drop_path.draw(len(x), x),)))

    def update(
        self,
        rows: Tensor,
        lengths: list[int],
        context: Context,
        on_map: OnMap | None = None,
    ) -> Tensor:
        """See :class:`Block`; norm and MLP of rows ``(sum_b L_b, C)``."""
        update = in_parts(self._rows, rows, self.hidden_dims)
        (kept,) = context.kept
        return (
            update if kept is None else self.drop_path(update, kept, lengths)
        )

    def _rows(self, x: Tensor) -> Tensor:
        x = self.pwconv2(F.gelu(self.pwconv1(self.norm(x))))
        # Its memory is used again, see `add`: no output of a module as it is.
        return x.clone() if self.gamma is None else x * self.gamma

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """See :class:`Block`; there are no extra tokens."""
        return LinearCost(
            size[0] * size[1] * self.embed_dims * self.kernel_size**2,
            2 * self.embed_dims * self.hidden_dims,
        )


class Downsample(nn.Sequential):
    """A map to tokens of ``side x side`` patches; norm after or before.

    Args:
        in_channels (int): Channels of the map that comes in.
        embed_dims (int): Channels ``C`` of the tokens.
        side (int): Side of a patch.
        norm_first (bool): Norm the map, not the tokens.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, side: int, norm_first: bool
    ) -> None:
        norm = nn.LayerNorm(in_channels if norm_first else embed_dims, 1e-6)
        # Channels last, as the tokens are: their map needs no copy.
        conv = nn.Conv2d(in_channels, embed_dims, side, stride=side).to(
            memory_format=torch.channels_last
        )
        super().__init__(*((norm, conv) if norm_first else (conv, norm)))
        self.side, self.norm_first = side, norm_first
        self.flops_per_token = in_channels * embed_dims * side**2

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Map ``(B, C_in, H, W)`` to tokens and their map's size.

        A border narrower than a patch is left out; a map smaller than one
        patch is padded to one.

        Returns:
            tuple[Tensor, tuple[int, int]]: ``(B, h * w, C)`` and ``(h, w)``.
        """
        norm, conv = self if self.norm_first else reversed(self)
        if self.norm_first:
            # (B, C, H, W) -> (B, H, W, C) -> (B, C, H, W)
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = conv(pad_to_patch(x, self.side))
        # (B, C, h, w) -> (B, h * w, C)
        tokens = x.flatten(2).transpose(1, 2)
        size = tuple(x.shape[-2:])
        return tokens if self.norm_first else norm(tokens), size


class ConvNeXt(Backbone):
    """ConvNeXt, equal to ``mmpretrain.ConvNeXt``, but not V2's.

    Parameters carry the names of the official code. Any image size runs:
    borders that the strides don't divide are cut off, as there; smaller maps
    are padded to one patch.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'``,
            ``'xlarge'``, or a dict with ``depths`` and ``channels``, each of
            one value per stage. Defaults to ``'tiny'``.
        layer_scale_init_value (float): Of the factor of each channel's
            update. Defaults to 1e-6; 0: none.
        drop_path_rate (float): Stochastic depth per sample, rising linearly
            over the blocks from 0 to this. Defaults to 0.1.
        out_indices (int | Sequence[int]): Stages whose maps are returned,
            each after a norm of its own, ascending, negative ones counted
            from the end; later stages are not built. Defaults to
            (0, 1, 2, 3), of strides 4, 8, 16, 32.
        frozen_stages (int): The first so many stages are not trained, but
            the norms of their outputs are, as in mmpretrain; if no stage is
            trained, neither are those, which mmpretrain still trains.
            Defaults to -1, like 0 none.
        with_cp (bool): Recompute blocks in the backward pass to save memory.
            Defaults to False.
        in_channels (int): Channels of the image. Defaults to 3.
        gap_before_final_norm (bool): Return the normed mean of each map,
            ``(B, C_i)``, as the official classifier does. Defaults to False:
            normed maps.
        init_cfg (dict, optional): E.g. ``dict(type='Pretrained',
            checkpoint=...)``. Defaults to None: truncated normal weights.
    """

    arch_zoo = {
        'tiny': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
        'small': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
        'base': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
        'large': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
        'xlarge': dict(depths=(3, 3, 27, 3), channels=(256, 512, 1024, 2048)),
    }
    patch_sizes = (4, 2, 2, 2)

    def __init__(
        self,
        arch: str | dict = 'tiny',
        layer_scale_init_value: float = 1e-6,
        drop_path_rate: float = 0.1,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        in_channels: int = 3,
        gap_before_final_norm: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = look_up(arch, self.arch_zoo, {})
        check_stages(arch, self.max_stages)
        check_arguments('featmap', frozen_stages, self.max_stages)
        self.arch = arch
        self.out_indices = check_out_indices(out_indices, self.max_stages)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.in_channels = in_channels
        self.layer_scale_init_value = layer_scale_init_value
        self.gap_before_final_norm = gap_before_final_norm

        depths, channels = arch['depths'], [in_channels, *arch['channels']]
        drop_path = drop_path_rates(drop_path_rate, sum(depths))
        self.strides = []
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        # A stage that no output depends on would be trained by nothing.
        for i in range(self.out_indices[-1] + 1):
            side, dims = self.patch_sizes[i], channels[i + 1]
            self.strides.append(side * (self.strides[-1] if i else 1))
            self.downsample_layers.append(
                Downsample(channels[i], dims, side, norm_first=i > 0)
            )
            self.stages.append(
                nn.ModuleList(
                    ConvNeXtBlock(
                        dims,
                        layer_scale_init_value,
                        drop_path=drop_path.pop(0),
                        name=f'stages.{i}.{j}',
                    )
                    for j in range(depths[i])
                )
            )
            if i in self.out_indices:
                self.add_module(f'norm{i}', nn.LayerNorm(dims, eps=1e-6))

        self._init_parameters()
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def _init_parameters(self) -> None:
        """Initialise as the official ConvNeXt does."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def max_stages(self) -> int:
        """See :class:`Backbone`."""
        return len(self.patch_sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps and set :attr:`cost`.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``, any size.

        Returns:
            tuple[Tensor]: ``(B, C_i, H_i, W_i)`` of each stage in
            ``out_indices``, or ``(B, C_i)`` if ``gap_before_final_norm``.
        """
        self.check_images(x)
        mask = self.valid_mask(x)
        outs, costs = [], []
        for i, downsample in enumerate(self.downsample_layers):
            tokens, size = downsample(x)
            last = len(self.stages[i]) - 1
            stream = [tokens]
            del tokens  # nobody else holds them while they are updated
            (tokens,), cost = self.run_blocks(
                i, stream.pop(), size, mask, [last]
            )
            flops = size[0] * size[1] * downsample.flops_per_token
            embedding = Cost.constant(flops, len(x), x.device)
            costs.append(Cost.add_up([embedding, cost]))
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                if self.gap_before_final_norm:
                    outs.append(norm(tokens.mean(1)))
                else:
                    outs.append(_to_map(norm(tokens), size))
            x = _to_map(tokens, size)
        self.cost = Cost.of_stages(costs)
        return tuple(outs)

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`Backbone`."""
        num_frozen = max(0, self.frozen_stages)
        modules = [
            *self.downsample_layers[:num_frozen],
            *self.stages[:num_frozen],
        ]
        if num_frozen >= len(self.stages):
            modules += self._norms().values()
        return modules

    def _norms(self) -> dict[str, nn.Module]:
        names = [f'norm{i}' for i in self.out_indices]
        return {name: getattr(self, name) for name in names}

    def new_parts(self) -> dict[str, nn.Module]:
        """See :class:`Backbone`: a classifier has the last norm alone."""
        return self._norms()

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, see :meth:`ViT.get_layer_depth`.

        That of the official fine-tuning, in which up to three blocks of the
        third stage, and all of each other stage, are one layer.
        """
        last = 12 if self.arch['depths'][-2] > 9 else 6
        name = param_name.removeprefix(prefix)
        part, *numbers = name.split('.')
        if not param_name.startswith(prefix) or part not in (
            'downsample_layers',
            'stages',
        ):
            return last + 1, last + 2
        stage, number = map(int, numbers[:2])
        depth = (1, 2, 3, last)[stage]
        if part == 'downsample_layers':
            depth = depth if stage else 0
        elif stage == 2:
            depth += number // 3
        return depth, last + 2

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Backbone`."""
        return dict(
            layer_scale_init_value=1e-6 * ('stages.0.0.gamma' in state)
        )

    @staticmethod
    def sizes_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """See :class:`Backbone`."""
        blocks = {
            found.groups(): state[key].numel()
            for key in sorted(state)
            if (found := re.fullmatch(r'stages\.(\d)\.(\d+)\.norm.bias', key))
        }
        depths = Counter(stage for stage, _ in blocks)
        channels = {stage: width for (stage, _), width in blocks.items()}
        return dict(depths=[*depths.values()], channels=[*channels.values()])

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """How the entries of the stages begin that no output needs."""
        return tuple(
            f'{part}.{i}.'
            for i in range(len(self.stages), self.max_stages)
            for part in ('downsample_layers', 'stages')
        )


def _to_map(tokens: Tensor, size: Size) -> Tensor:
    """``(B, H * W, C)`` to ``(B, C, H, W)``, a view."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


# The names that ConvNeXt's weights have in other code bases.
# The first whose mark is found counts.
ConvNeXt.layouts = (
    Layout(
        *('ConvNeXt', 'mmdge', r'stages\.\d\.\d+\.router\..*'),
        no_place=HEAD,
        container='state_dict',
    ),
    Layout(
        *('ConvNeXt', 'mmpretrain', r'stages\.\d\.\d+\.depthwise_conv\..*'),
        rows=(
            ('.depthwise_conv.', '.dwconv.'),
            ('.pointwise_conv1.', '.pwconv1.', 'maybe conv'),
            ('.pointwise_conv2.', '.pwconv2.', 'maybe conv'),
        ),
        no_place=rf'{HEAD}|{ROUTER}|{PREDICTOR}|{FAST_PATH}',
        container='state_dict',
    ),
    # A static ConvNeXt of ours has the same names, but for the last norm.
    Layout(
        *('ConvNeXt', 'official', r'stages\.\d\.\d+\.dwconv\..*'),
        rows=(
            ('.norm.', '.norm of a block.'),  # and back: not the last one
            ('norm.', 'norm3.'),
            ('.norm of a block.', '.norm.'),
            # DSS's
            ('.in_conv.1.', '.in_conv.1.', 'conv'),
            ('.out_conv.', '.out_conv.', 'conv'),
            ('.fast_path.0.', '.fast_path.norm.'),
            ('.fast_path.1.', '.fast_path.fc.'),
            ('.fast_path_gamma', '.fast_path.ls.gamma'),
        ),
        no_place=rf'norm[0-2]\..*|{ROUTER}',
        container='model',
    ),
)
