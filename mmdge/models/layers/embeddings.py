"""Image or map to tokens, and their positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_to_patch(x: Tensor, side: int) -> Tensor:
    """Pad a map ``(B, C, H, W)`` smaller than a patch to one, with zeros.

    A convolution whose kernel is larger than its map is not defined, in PVT
    neither. At the right and at the bottom; other maps stay as they are.
    """
    bottom, right = (max(0, side - length) for length in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def complete_patches(x: Tensor, side: int) -> Tensor:
    """Complete borders of ``(B, C, H, W)`` narrower than a patch by zeros."""
    bottom, right = (-length % side for length in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


class PatchEmbed(nn.Module):
    """Patches to tokens.

    Args:
        in_channels (int): Channels of the map that comes in.
        embed_dims (int): Channels ``C`` of the tokens.
        patch_size (int): Side of a patch.
        norm (bool): Norm the tokens, as PVT does (section 3.2). Defaults to
            True.
        overlap (bool): Patches are of ``2 * patch_size - 1`` pixels, still
            ``patch_size`` apart, as PVTv2's and SegFormer's, and completed
            with zeros. Defaults to False.
        complete (bool): Complete a border narrower than a patch with zeros,
            as mmpretrain's VisionTransformer does. Defaults to False: leave
            it out, as PVT does; but a map smaller than one patch is padded
            to one.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int,
        norm: bool = True,
        complete: bool = False,
        overlap: bool = False,
    ) -> None:
        super().__init__()
        # The formula reads these, not a layer that an adapter may replace.
        self.in_channels, self.embed_dims = in_channels, embed_dims
        self.patch_size = patch_size
        self.complete, self.overlap = complete, overlap
        self.kernel_size = 2 * patch_size - 1 if overlap else patch_size
        # Channels last, as the tokens are: their map needs no copy.
        self.proj = nn.Conv2d(
            in_channels,
            embed_dims,
            self.kernel_size,
            stride=patch_size,
            padding=self.kernel_size // 2 if overlap else 0,
        ).to(memory_format=torch.channels_last)
        self.norm = (
            nn.LayerNorm(embed_dims, eps=1e-5) if norm else nn.Identity()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Map ``(B, C_in, H, W)`` to tokens and their map's size.

        Returns:
            tuple[Tensor, tuple[int, int]]: ``(B, h * w, C)`` and ``(h, w)``.
        """
        if self.complete:
            x = complete_patches(x, self.patch_size)
        if not self.overlap:
            x = pad_to_patch(x, self.patch_size)
        x = self.proj(x)
        size = tuple(x.shape[-2:])
        return self.norm(x.flatten(2).transpose(1, 2)), size

    def flops(self, size: tuple[int, int]) -> int:
        """Multiply-adds of one image for a token map of ``size``."""
        per_token = self.in_channels * self.embed_dims * self.kernel_size**2
        return size[0] * size[1] * per_token


def resize_pos_embed(
    pos_embed: Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    mode: str = 'bilinear',
) -> Tensor:
    """Resize a position embedding, corners free.

    From ``(1, h * w, C)``, ``source`` being ``(h, w)``, to ``(1, H * W, C)``.
    ``mode`` is that of :func:`torch.nn.functional.interpolate`: PVT's is
    bilinear, DeiT's bicubic.
    """
    if tuple(source) == tuple(target):
        return pos_embed
    # (1, h * w, C) -> (1, C, h, w)
    grid = pos_embed.unflatten(1, source).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=target, mode=mode, align_corners=False)
    return grid.flatten(2).transpose(1, 2)
