"""ViT (Dosovitskiy et al., ICLR 2021) as DeiT (Touvron et al., ICML 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import Cost
from ..layers import PatchEmbed, TransformerBlock, resize_pos_embed
from ..weights import HEAD, PREDICTOR, ROUTER, Layout
from .base import (
    Backbone,
    check_arguments,
    check_out_indices,
    drop_path_rates,
    image_size,
    look_up,
)


class ViT(Backbone):
    """Plain vision transformer, equal to ``mmpretrain.VisionTransformer``.

    Parameters carry the names of the official DeiT, but ``attn.qkv`` is
    ``attn.q`` and ``attn.kv``, because queries may be packed where keys are
    not. Any image size runs: the position embedding is resized, and a border
    narrower than a patch is completed with zeros.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, or a dict with
            ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``feedforward_channels``. Defaults to ``'small'``.
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
        drop_path_rate (float): See :class:`PVT`. Defaults to 0.1.
        frozen_stages (int): The patch embedding and the first so many blocks
            are not trained; what their routers remember of images goes on.
            Defaults to -1, like 0 none.
        with_cp (bool): See :class:`PVT`, also for the following. Defaults to
            False.
        pretrain_img_size (int | tuple[int, int]): Defaults to 224.
        in_channels (int): Defaults to 3.
        init_cfg (dict, optional): Defaults to None.
    """

    arch_zoo = {
        'tiny': dict(embed_dims=192, num_heads=3, feedforward_channels=768),
        'small': dict(embed_dims=384, num_heads=6, feedforward_channels=1536),
        'base': dict(embed_dims=768, num_heads=12, feedforward_channels=3072),
    }
    arch_defaults = dict(num_layers=12)

    def __init__(
        self,
        arch: str | dict = 'small',
        patch_size: int = 16,
        distilled: bool = False,
        out_type: str = 'featmap',
        out_indices: int | Sequence[int] = -1,
        final_norm: bool = True,
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = look_up(arch, self.arch_zoo, self.arch_defaults)
        if any(not isinstance(v, int) or v < 1 for v in arch.values()):
            raise UserError(
                f'arch must give one positive integer to each of '
                f'{sorted(arch)}, but got {arch}.'
            )
        dims, depth = arch['embed_dims'], arch['num_layers']
        check_arguments(out_type, frozen_stages, depth)
        if not isinstance(patch_size, int) or patch_size < 1:
            raise UserError(
                'patch_size must be an integer of at least 1, but got '
                f'{patch_size!r}.'
            )
        sides = image_size(pretrain_img_size, patch_size)
        self.arch = arch
        self.patch_size = patch_size
        self.strides = [patch_size]
        self.out_type = out_type
        self.out_indices = check_out_indices(out_indices, depth)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.in_channels = in_channels

        self.patch_embed = PatchEmbed(
            in_channels, dims, patch_size, norm=False, complete=True
        )
        self.pos_size = sides[0] // patch_size, sides[1] // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.num_extra_tokens = 2 if distilled else 1
        num_positions = self.num_extra_tokens + math.prod(self.pos_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, dims))
        # A block that no output depends on would be trained by nothing.
        num_blocks = self.out_indices[-1] + 1
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dims,
                arch['num_heads'],
                arch['feedforward_channels'],
                drop_path=rate,
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
        if frozen_stages > 0:
            for parameter in self.parameters(recurse=False):
                parameter.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    @property
    def stages(self) -> list[nn.ModuleList]:
        """All blocks, in one stage."""
        return [self.blocks]

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
        stream = [self._embed(tokens, size)]
        del tokens  # nobody else holds them while they are updated
        outs, cost = self.run_blocks(
            0, stream.pop(), size, self.valid_mask(x), self.out_indices
        )
        outs[-1] = self.norm(outs[-1])
        flops = self.patch_embed.flops(size)
        embedding = Cost.constant(flops, len(x), x.device)
        self.cost = Cost.of_stages([Cost.add_up([embedding, cost])])
        return tuple(self._format(out, size) for out in outs)

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

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`Backbone`."""
        if self.frozen_stages < 1:
            return []
        modules = [self.patch_embed, *self.blocks[: self.frozen_stages]]
        if self.frozen_stages >= len(self.blocks):
            modules.append(self.norm)
        return modules

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
        part, _, rest = name.partition('.')
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        if part == 'blocks':
            return int(rest.partition('.')[0]) + 1, num_layers
        if part in ('patch_embed', 'pos_embed', 'cls_token', 'dist_token'):
            return 0, num_layers
        return num_layers - 1, num_layers

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """See :class:`Backbone`."""
        return {'pos_embed': (self.pos_size, 'bicubic')}

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """How the entries of the blocks begin that no output needs."""
        later = range(len(self.blocks), self.arch['num_layers'])
        return tuple(f'blocks.{i}.' for i in later)


# The names that ViT's weights have in other code bases.
_OPENMMLAB = (
    ('patch_embed.projection.', 'patch_embed.proj.'),
    ('.ln1.', '.norm1.'),
    ('.ln2.', '.norm2.'),
    ('.ffn.layers.0.0.', '.mlp.fc1.'),
    ('.ffn.layers.1.', '.mlp.fc2.'),
    ('layers.', 'blocks.'),
    ('ln1.', 'norm.'),
    ('ln2.', 'fc_norm.'),  # of the mean token
)

# The first whose mark is found counts.
ViT.layouts = (
    Layout(
        *('DeiT', 'vtpack', r'blocks\.\d+\.dge\..*'),  # the official DGE code
        rows=(
            ('.dge.router.', '.router.'),
            ('.dge.splits', '.router.sides', 'splits'),
        ),
        no_place=rf'.*\.router\.(?!gate\.|sides$).*|{PREDICTOR}',
        container='model',
    ),
    Layout(
        *('DeiT', 'mmpretrain', r'layers\.\d+\.attn\.qkv\..*'),
        rows=(('.attn.qkv.', '.attn.q.', 'qkv'), *_OPENMMLAB),
        no_place=rf'{HEAD}|{ROUTER}|{PREDICTOR}',
        container='state_dict',
    ),
    Layout(
        *('DeiT', 'mmseg', r'layers\.\d+\.attn\.attn\.in_proj_.*'),
        rows=(
            ('.attn.attn.in_proj_', '.attn.q.', 'qkv'),
            ('.attn.attn.out_proj.', '.attn.proj.'),
            *_OPENMMLAB,
        ),
        no_place=rf'dist_token|{HEAD}|{ROUTER}|{PREDICTOR}',
        container='state_dict',
    ),
    Layout(  # timm's and MAE's, too
        *('DeiT', 'official', r'blocks\.\d+\.attn\.qkv\..*'),
        rows=(('.attn.qkv.', '.attn.q.', 'qkv'),),
        no_place=ROUTER,
        container='model',
    ),
    Layout(
        *('DeiT', 'mmdge', r'blocks\.\d+\.attn\.q\..*', (), HEAD, 'state_dict')
    ),
)
