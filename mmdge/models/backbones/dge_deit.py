"""DGE-DeiT: the data-efficient image transformer with dynamic grains.

Sources: DGE (Song et al., NeurIPS 2021), DeiT (Touvron et al., ICML 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdge.registry import MODELS

from ..architectures import VIT_LAYOUTS
from ..cost import Cost
from ..layers import PatchEmbed, resize_pos_embed
from ..routing import DGEBlock, content_regions, patch_grid
from .base import (
    DynamicBackbone,
    check_granularities,
    check_out_indices,
    drop_path_rates,
)


@MODELS.register_module()
class DGEDeiT(DynamicBackbone):
    """DeiT whose blocks give each region as many queries as it deserves.

    ``routing='finest'`` is its dense twin, the plain DeiT, equal to
    ``mmpretrain.VisionTransformer`` with the same weights. Parameters carry
    the names of the official DeiT, but ``attn.qkv`` is ``attn.q`` and
    ``attn.kv``, because queries are packed and keys are not; its checkpoints
    and others' load as they are, see ``docs/checkpoints.md``.

    Any image size runs: the position embedding is resized, and a border
    narrower than a patch is completed with zeros.

    What is 0 in all channels counts as padding, which share and error routers
    give the fewest queries: pad after normalising, with 0, as the hosts do.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, or a dict with
            ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``feedforward_channels``. Defaults to ``'small'``.
        granularities (Sequence[int]): Candidate sides of a patch of tokens,
            finest first, each dividing the last, which is the region's side.
            Defaults to (1, 2, 4).
        routing (str | dict): See :class:`DGEPVT`. Defaults to ``'learned'``.
        price (float): See :class:`DGEPVT`. Defaults to 0.
        sparse_training (bool): See :class:`DGEPVT`. Defaults to False.
        patch_size (int): Side of a token in pixels. Defaults to 16.
        distilled (bool): Add a distillation token. Defaults to False.
        out_type (str): ``'featmap'``: maps of the blocks ``out_indices``;
            ``'cls_token'``: their cls token ``(B, C)``, and if ``distilled``
            the pair of cls and distillation token, as mmpretrain's
            ``DeiTClsHead`` takes it. Defaults to ``'featmap'``.
        out_indices (int | Sequence[int]): Blocks whose output is returned;
            negative ones count from the end. Blocks after the last one are
            not built. Defaults to -1.
        final_norm (bool): Norm the output of the last block. Defaults to
            True.
        drop_path_rate (float): Stochastic depth per sample, rising linearly
            over the blocks from 0 to this. Defaults to 0.1.
        frozen_stages (int): The patch embedding and the first so many blocks
            are not trained; their routers still learn how the regions' scores
            are distributed. Defaults to -1, like 0 none.
        with_cp (bool): Recompute blocks in the backward pass to save memory.
            Defaults to False.
        pretrain_img_size (int | Sequence[int]): Side, or height and width, of
            the images for which the position embedding is laid out.
            Defaults to 224.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict, optional): E.g. ``dict(type='Pretrained',
            checkpoint=...)``. Defaults to None: truncated normal weights.

    Example:
        >>> model = DGEDeiT(arch='tiny', routing='variance').eval()
        >>> (map_,) = model(torch.rand(1, 3, 256, 320))
        >>> map_.shape, model.cost.ratio.shape
        (torch.Size([1, 192, 16, 20]), torch.Size([1]))
    """

    layouts = VIT_LAYOUTS
    arch_zoo = {
        'tiny': dict(embed_dims=192, num_heads=3, feedforward_channels=768),
        'small': dict(embed_dims=384, num_heads=6, feedforward_channels=1536),
        'base': dict(embed_dims=768, num_heads=12, feedforward_channels=3072),
    }
    arch_defaults = dict(num_layers=12)

    def __init__(
        self,
        arch: str | dict = 'small',
        granularities: Sequence[int] = (1, 2, 4),
        routing: str | dict = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        patch_size: int = 16,
        distilled: bool = False,
        out_type: str = 'featmap',
        out_indices: int | Sequence[int] = -1,
        final_norm: bool = True,
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        pretrain_img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = self._check_arch(arch)
        dims, depth = arch['embed_dims'], arch['num_layers']
        self._check_out_type(out_type)
        if not isinstance(frozen_stages, int) or frozen_stages > depth:
            raise ValueError(
                f'frozen_stages={frozen_stages!r} must be an integer of at '
                f'most {depth}, the number of blocks.'
            )
        if not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(
                'patch_size must be an integer of at least 1, but got '
                f'{patch_size!r}.'
            )
        height, width = self._check_img_size(pretrain_img_size, patch_size)
        (self.granularities,) = check_granularities(granularities, 1)
        self.arch = arch
        self.patch_size = patch_size
        self.out_type = out_type
        self.out_indices = check_out_indices(out_indices, depth)
        self.frozen_stages = frozen_stages
        self.in_channels = in_channels

        self.patch_embed = PatchEmbed(
            in_channels, dims, patch_size, norm=False, complete=True
        )
        self.pos_size = (height // patch_size, width // patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.num_extra_tokens = 2 if distilled else 1
        self.pos_embed = nn.Parameter(
            torch.zeros(
                1, self.num_extra_tokens + math.prod(self.pos_size), dims
            )
        )
        # A block that no output depends on would be trained by nothing.
        num_blocks = self.out_indices[-1] + 1
        self.blocks = nn.ModuleList(
            DGEBlock(
                dims,
                arch['num_heads'],
                arch['feedforward_channels'],
                1,  # sr_ratio: keys and values from all tokens
                self.granularities,
                routing,
                price=price,
                sparse_training=sparse_training,
                drop_path=rate,
                with_cp=with_cp,
                name=f'blocks.{i}',
            )
            for i, rate in enumerate(
                drop_path_rates(drop_path_rate, depth)[:num_blocks]
            )
        )
        self.norm = nn.Identity()
        if final_norm and num_blocks == depth:
            self.norm = nn.LayerNorm(dims, eps=1e-6)

        self._init_parameters()
        self._freeze()

    @classmethod
    def _check_arch(cls, arch: str | dict) -> dict:
        arch = {**cls.arch_defaults, **cls._look_up(arch)}
        names = {*cls.arch_defaults, *cls.arch_zoo['tiny']}
        if set(arch) != names or any(
            not isinstance(value, int) or value < 1 for value in arch.values()
        ):
            raise ValueError(
                f'arch must give one positive integer to each of '
                f'{sorted(names)}, but got {arch}.'
            )
        return arch

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """See :class:`DynamicBackbone`."""
        later = range(len(self.blocks), self.arch['num_layers'])
        return tuple(f'blocks.{i}.' for i in later)

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """See :class:`DynamicBackbone`."""
        return {'pos_embed': (self.pos_size, 'bicubic')}

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, for mmpretrain's layer-wise learning rates.

        Args:
            param_name (str): Its name in the whole model.
            prefix (str): Of the backbone's parameters. Defaults to ``''``.

        Returns:
            tuple[int, int]: 0 for the embeddings, 1 for the first block, and
            so on, the last for what follows the blocks; how many there are.
        """
        num_layers = len(self.blocks) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or name.startswith('norm.'):
            return num_layers - 1, num_layers
        if name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, num_layers
        return 0, num_layers

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`DynamicBackbone`."""
        if self.frozen_stages < 1:
            return []
        modules = [self.patch_embed, *self.blocks[: self.frozen_stages]]
        if self.frozen_stages >= len(self.blocks):
            modules.append(self.norm)
        return modules

    def _freeze(self) -> None:
        if self.frozen_stages < 1:
            return
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs and set :attr:`cost`.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``, any size.

        Returns:
            tuple: For each of ``out_indices`` the map ``(B, C, h, w)``, or
            what ``out_type='cls_token'`` says; ``h, w`` are ``H, W`` over
            ``patch_size``, rounded up.
        """
        self.check_images(x)
        tokens, size = self.patch_embed(x)
        region = self.granularities[-1]
        content = content_regions(
            self.content(x, self.patch_size * region),
            patch_grid(size, region),
            side=1,
        )
        tokens = self._embed(tokens, size)
        flops = self.patch_embed.flops(size)
        costs = [Cost.constant(flops, len(x), x.device)]
        outs = []
        for i, block in enumerate(self.blocks):
            tokens, cost = block(tokens, size, self.patch_size, content)
            costs.append(cost)
            if i in self.out_indices:
                last = i == len(self.blocks) - 1
                out = self.norm(tokens) if last else tokens
                outs.append(self._format(out, size))
        self.cost = Cost.of_stages([Cost.add_up(costs)])
        return tuple(outs)

    def _embed(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Add the extra tokens, first, and the positions."""
        extra_pos, pos = self.pos_embed.tensor_split(
            [self.num_extra_tokens], 1
        )
        extra = [self.cls_token]
        if self.num_extra_tokens == 2:
            extra.append(self.dist_token)
        extra = torch.cat(extra, 1) + extra_pos  # (1, E, C)
        pos = resize_pos_embed(pos, self.pos_size, size, mode='bicubic')
        return torch.cat([extra.expand(len(tokens), -1, -1), tokens + pos], 1)

    def _format(
        self, tokens: Tensor, size: tuple[int, int]
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.out_type == 'featmap':
            # (B, E + h * w, C) -> (B, C, h, w)
            tokens = tokens[:, self.num_extra_tokens :]
            return tokens.unflatten(1, size).permute(0, 3, 1, 2)
        if self.num_extra_tokens == 2:
            return tokens[:, 0], tokens[:, 1]
        return tokens[:, 0]
