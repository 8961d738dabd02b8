"""The pyramid of a plain vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdge.registry import MODELS
from mmdge.utils import UserError


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm each position by itself."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """A pyramid made of one map, so that a plain ViT serves detection heads.

    Source: ViTDet (Li et al., ECCV 2022), section 3, the simple feature
    pyramid: each level is the same map, brought to its stride by transposed
    convolutions (finer) or max pooling (coarser), then a 1 x 1 and a 3 x 3
    convolution. Levels coarser than twice the map's stride are the level
    before, subsampled.

    Args:
        in_channels (int): Channels of the map.
        out_channels (int): Channels of every level. Defaults to 256.
        num_outs (int): Levels. Defaults to 5: strides 4, 8, 16, 32, 64.
        start_level (int): The first level's stride is ``4 * 2**start_level``.
            Defaults to 0; RetinaNet's usual pyramid starts at 1.
        in_stride (int): The map's stride, the backbone's patch size: 16, the
            default, 8 or 4.
        init_cfg (dict, optional): Defaults to None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        in_stride: int = 16,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_stride not in (4, 8, 16):
            raise UserError(
                f'in_stride, the stride of the map that comes in, must be 4, '
                f'8 or 16, but got {in_stride!r}.'
            )
        if start_level not in range(4) or num_outs not in range(1, 99):
            raise UserError(
                'start_level must be 0 to 3, and num_outs at least 1, but got '
                f'{start_level!r} and {num_outs!r}.'
            )
        self.strides = [4 * 2 ** (start_level + i) for i in range(num_outs)]
        self.levels = nn.ModuleList(
            _level(in_channels, out_channels, in_stride, stride)
            for i, stride in enumerate(self.strides)
            if i == 0 or stride <= 2 * in_stride
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map the backbone's one ``(B, in_channels, h, w)`` to the pyramid.

        Finest first, each of half the side of the one before, rounded up.
        """
        if len(inputs) != 1:
            raise UserError(
                f'SimpleFPN makes its pyramid from one map, but got '
                f'{len(inputs)}; set one index in out_indices of the backbone.'
            )
        outs = [level(inputs[0]) for level in self.levels]
        while len(outs) < len(self.strides):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _level(
    in_channels: int, out_channels: int, in_stride: int, stride: int
) -> nn.Sequential:
    """One level: to its stride, then the two convolutions."""
    layers: list[nn.Module] = []
    channels = in_channels
    while in_stride > stride:
        if layers:
            layers += [ChannelNorm(channels, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
        in_stride //= 2
    if in_stride < stride:
        layers.append(nn.MaxPool2d(stride // in_stride, ceil_mode=True))
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        ChannelNorm(out_channels, eps=1e-6),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        ChannelNorm(out_channels, eps=1e-6),
    )
