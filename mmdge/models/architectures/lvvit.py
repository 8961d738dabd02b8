"""LV-ViT (Jiang et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from ..layers.embeddings import complete_patches
from ..weights import COARSE_PASS, PREDICTOR, ROUTER, Layout
from .vit import CF_VIT, OTHER_HEADS, ViT

STEM_DIMS = 64


class ConvStem(nn.Module):
    """Image to tokens by convolutions; parameter names of the official code.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels ``C`` of the tokens.
        patch_size (int): Pixels per token, even: half of it is the side of
            the patches of the map, of stride 2, that the stem makes.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, patch_size: int
    ) -> None:
        super().__init__()
        if patch_size % 2:
            raise UserError(
                'patch_size must be even, because the first convolution has '
                f'stride 2, but got {patch_size}.'
            )
        self.in_channels, self.embed_dims = in_channels, embed_dims
        self.patch_size = patch_size
        dims, side = STEM_DIMS, patch_size // 2
        self.conv1 = nn.Conv2d(in_channels, dims, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(dims)
        self.conv2 = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dims)
        self.conv3 = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(dims)
        self.proj = nn.Conv2d(dims, embed_dims, side, stride=side)
        # Channels last, as the tokens are: their map needs no copy.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, C_in, H, W)`` to tokens and their map's size.

        Returns:
            tuple[Tensor, tuple[int, int]]: ``(B, h * w, C)`` and ``(h, w)``.
        """
        x = complete_patches(x, self.patch_size)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.proj(x)
        # (B, C, h, w) -> (B, h * w, C)
        return x.flatten(2).transpose(1, 2), tuple(x.shape[-2:])

    def flops(self, size: tuple[int, int]) -> int:
        """Multiply-adds of one image for a token map of ``size``."""
        pixels = size[0] * size[1] * (self.patch_size // 2) ** 2
        inputs = 7**2 * self.in_channels + 2 * 3**2 * STEM_DIMS
        return pixels * STEM_DIMS * (inputs + self.embed_dims)


class LVViT(ViT):
    """LV-ViT, from its official code; no host has it.

    A ViT whose patch embedding is a convolutional stem, whose queries, keys
    and values have no biases, and whose blocks add half of what attention and
    MLP give. Parameters carry the official names, but for ``attn.qkv``, see
    :class:`ViT`. Its two classifiers are no part of it: the official code
    gives ``head(cls) + 0.5 * max(aux_head(patches))``, over the patches that
    are left, where mmpretrain's ``LinearClsHead`` gives the first alone.

    Args:
        arch (str | dict): ``'small'``, ``'medium'``, or a dict, see
            :class:`ViT`. Defaults to ``'small'``.
        norm_eval (bool): Keep the stem's BatchNorm in evaluation mode in
            training, as mmdet's backbones do where batches are small; its
            weights are trained all the same. Defaults to False.
        **kwargs: See :class:`ViT`.
    """

    arch_zoo = {
        'small': dict(
            embed_dims=384,
            num_layers=16,
            num_heads=6,
            feedforward_channels=1152,
        ),
        'medium': dict(
            embed_dims=512,
            num_layers=20,
            num_heads=8,
            feedforward_channels=1536,
        ),
    }
    block_settings = dict(eps=1e-5, qkv_bias=False, skip_lam=2.0)

    def __init__(
        self,
        arch: str | dict = 'small',
        norm_eval: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.norm_eval = norm_eval

    def _make_patch_embed(self, dims: int) -> nn.Module:
        return ConvStem(self.in_channels, dims, self.patch_size)

    def train(self, mode: bool = True) -> LVViT:
        """See :class:`Backbone`; also what ``norm_eval`` says."""
        super().train(mode)
        if self.norm_eval:
            self.patch_embed.eval()
        return self

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Backbone`."""
        told = ViT.arguments_of(state)
        if 'patch_size' in told:  # of the map of stride 2
            told['patch_size'] *= 2
        return told


_STEM = r'patch_embed\.bn1\..*'

# The names that LV-ViT's weights have, also below DynamicViT's predictors.
# The first whose mark is found counts.
LVViT.layouts = (
    Layout(  # the official CF-ViT
        *('LVViT', 'cf-vit', (_STEM, r'pos_embed_list\.1')),
        rows=CF_VIT,
        no_place=rf'dist_token|{ROUTER}|{PREDICTOR}',
        container='model',
    ),
    Layout(
        *('LVViT', 'official', (_STEM, r'blocks\.\d+\.attn\.qkv\..*')),
        rows=(('.attn.qkv.', '.attn.q.', 'qkv'),),
        no_place=rf'{ROUTER}|{COARSE_PASS}',
    ),
    Layout('LVViT', 'mmdge', _STEM, (), OTHER_HEADS, 'state_dict'),
)
