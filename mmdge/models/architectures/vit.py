"""ViT (Dosovitskiy et al., ICLR 2021), DeiT and DINOv2.

DeiT: Touvron et al., ICML 2021. DINOv2: Oquab et al., TMLR 2024; its register
tokens: Darcet et al., ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdge.utils import UserError, is_number

from ..cost import Cost
from ..layers import PatchEmbed, TransformerBlock, resize_pos_embed
from ..weights import (
    COARSE_PASS,
    EXTRA_PARTS,
    HEAD,
    PREDICTOR,
    ROUTER,
    Layout,
)
from .base import (
    Backbone,
    check_arguments,
    check_out_indices,
    drop_path_rates,
    image_size,
    look_up,
)

_SIZES = {
    'tiny': dict(embed_dims=192, num_heads=3, feedforward_channels=768),
    'small': dict(embed_dims=384, num_heads=6, feedforward_channels=1536),
    'base': dict(embed_dims=768, num_heads=12, feedforward_channels=3072),
    'large': dict(
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        feedforward_channels=4096,
    ),
    'huge': dict(
        embed_dims=1280,
        num_layers=32,
        num_heads=16,
        feedforward_channels=5120,
    ),
}
# What arguments of None are.
_DINOV2 = dict(
    patch_size=14, pretrain_img_size=518, layer_scale_init_value=1e-5
)
FFN_TYPES = ('origin', 'swiglu_fused')


class ViT(Backbone):
    """Plain vision transformer, equal to ``mmpretrain.VisionTransformer``.

    Parameters carry the names of the official DeiT and DINOv2, but
    ``attn.qkv`` is ``attn.q`` and ``attn.kv``, because queries may be packed
    where keys are not. Any image size runs: the position embedding is
    resized, and a border narrower than a patch is completed with zeros.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'`` (DeiT's),
            ``'large'``, ``'huge'``, ``'dinov2-small'``, ``'dinov2-base'``,
            ``'dinov2-large'``, ``'dinov2-giant'``, or a dict with
            ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``feedforward_channels``, and maybe what the arguments are that
            are None by default. Defaults to ``'small'``.
        patch_size (int, optional): Side of a token in pixels. Defaults to
            None: 14 for DINOv2, else 16.
        distilled (bool): Add a distillation token. Defaults to False.
        num_register_tokens (int): Extra tokens without a position; 4 in the
            DINOv2 that has them. Defaults to 0.
        layer_scale_init_value (float, optional): Initial factor of what
            attention and MLP add, learned channel by channel; 0: none.
            Defaults to None: 1e-5 for DINOv2, else 0.
        ffn_type (str, optional): ``'origin'``, the MLP, or
            ``'swiglu_fused'``, as in mmpretrain's ``layer_cfgs``. Defaults to
            None: the latter for ``'dinov2-giant'``.
        out_type (str): ``'featmap'``: maps of the blocks ``out_indices``;
            ``'cls_token'``: their cls token ``(B, C)``, and if ``distilled``
            the pair of cls and distillation token, as mmpretrain's
            ``DeiTClsHead`` takes it. Defaults to ``'featmap'``.
        out_indices (int | Sequence[int]): Blocks whose output is returned;
            negative ones count from the end. Blocks after the last one are
            not built. Defaults to -1.
        final_norm (bool): Norm the output of the last block. Defaults to
            True.
        apply_layernorm (bool): Norm all outputs by the final norm, whatever
            ``final_norm`` says, as DINOv2's heads for several blocks expect
            it; named as in Hugging Face's. Defaults to False.
        drop_path_rate (float): See :class:`PVT`. Defaults to 0.1.
        frozen_stages (int): The patch embedding and the first so many blocks
            are not trained; what their routers remember of images goes on.
            Defaults to -1, like 0 none.
        with_cp (bool): See :class:`PVT`, also for the following. Defaults to
            False.
        pretrain_img_size (int | tuple[int, int], optional): Of the images
            whose tokens have a position each. Defaults to None: 518 for
            DINOv2, else 224.
        in_channels (int): Defaults to 3.
        init_cfg (dict, optional): Defaults to None.
        interpolate_mode (str): ``'bicubic'`` or ``'bilinear'``, by which
            positions are resized. Defaults to ``'bicubic'``.
        norm_eps (float, optional): Of all layer norms; that of mmseg's, if its
            ``norm_cfg`` says nothing, is 1e-5. Defaults to
            None: 1e-6.
    """

    arch_zoo = {
        **_SIZES,
        **{
            f'dinov2-{size}': {**_SIZES[size], **_DINOV2}
            for size in ('small', 'base', 'large')
        },
        'dinov2-giant': dict(
            embed_dims=1536,
            num_layers=40,
            num_heads=24,
            feedforward_channels=6144,
            ffn_type='swiglu_fused',
            **_DINOV2,
        ),
    }
    arch_defaults = dict(
        num_layers=12,
        patch_size=16,
        pretrain_img_size=224,
        layer_scale_init_value=0.0,
        ffn_type='origin',
    )
    # What all blocks have, see TransformerBlock; the eps is the final norm's.
    block_settings: dict[str, Any] = dict(eps=1e-6)

    def __init__(
        self,
        arch: str | dict = 'small',
        patch_size: int | None = None,
        distilled: bool = False,
        out_type: str = 'featmap',
        out_indices: int | Sequence[int] = -1,
        final_norm: bool = True,
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        pretrain_img_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        init_cfg: dict | None = None,
        num_register_tokens: int = 0,
        layer_scale_init_value: float | None = None,
        ffn_type: str | None = None,
        apply_layernorm: bool = False,
        interpolate_mode: str = 'bicubic',
        norm_eps: float | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = look_up(arch, self.arch_zoo, self.arch_defaults)
        arguments = dict(
            patch_size=patch_size,
            pretrain_img_size=pretrain_img_size,
            layer_scale_init_value=layer_scale_init_value,
            ffn_type=ffn_type,
        )
        arch |= {k: v for k, v in arguments.items() if v is not None}
        sizes = [key for key in arch if key not in arguments]
        if any(not isinstance(arch[k], int) or arch[k] < 1 for k in sizes):
            raise UserError(
                f'arch must give one positive integer to each of '
                f'{sorted(sizes)}, but got {arch}.'
            )
        patch_size, scale = arch['patch_size'], arch['layer_scale_init_value']
        dims, depth = arch['embed_dims'], arch['num_layers']
        check_arguments(out_type, frozen_stages, depth)
        if not isinstance(patch_size, int) or patch_size < 1:
            raise UserError(
                'patch_size must be an integer of at least 1, but got '
                f'{patch_size!r}.'
            )
        if not is_number(scale) or scale < 0:
            raise UserError(
                'layer_scale_init_value must be a number of at least 0, which '
                f'is none, but got {scale!r}.'
            )
        if arch['ffn_type'] not in FFN_TYPES:
            raise UserError(
                f'ffn_type must be one of {FFN_TYPES}, but got '
                f'{arch["ffn_type"]!r}.'
            )
        if not isinstance(num_register_tokens, int) or num_register_tokens < 0:
            raise UserError(
                'num_register_tokens must be an integer of at least 0, but '
                f'got {num_register_tokens!r}.'
            )
        if interpolate_mode not in ('bicubic', 'bilinear'):
            raise UserError(
                "interpolate_mode must be 'bicubic' or 'bilinear', but got "
                f'{interpolate_mode!r}.'
            )
        sides = image_size(arch['pretrain_img_size'], patch_size)
        self.arch = arch
        self.patch_size = patch_size
        self.strides = [patch_size]
        self.out_type = out_type
        self.out_indices = check_out_indices(out_indices, depth)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.in_channels = in_channels
        self.interpolate_mode = interpolate_mode

        self.patch_embed = self._make_patch_embed(dims)
        self.pos_size = sides[0] // patch_size, sides[1] // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dims))
        num_positions = 1 + distilled + math.prod(self.pos_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, dims))
        if num_register_tokens:
            self.register_tokens = nn.Parameter(
                torch.zeros(1, num_register_tokens, dims)
            )
        self.distilled = distilled
        self.num_extra_tokens = 1 + distilled + num_register_tokens
        # A block that no output depends on would be trained by nothing.
        num_blocks = self.out_indices[-1] + 1
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dims,
                arch['num_heads'],
                arch['feedforward_channels'],
                drop_path=rate,
                name=f'blocks.{i}',
                layer_scale_init_value=scale,
                ffn_type=arch['ffn_type'],
                **self.block_settings,
            )
            for i, rate in enumerate(
                drop_path_rates(drop_path_rate, depth)[:num_blocks]
            )
        )
        self.apply_layernorm = apply_layernorm
        self.norm = nn.Identity()
        if apply_layernorm or (final_norm and num_blocks == depth):
            self.norm = nn.LayerNorm(dims, eps=self.block_settings['eps'])

        self._set_norm_eps(norm_eps)
        self._init_parameters()
        if frozen_stages > 0:
            for parameter in self.parameters(recurse=False):
                parameter.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def _make_patch_embed(self, dims: int) -> nn.Module:
        return PatchEmbed(
            self.in_channels, dims, self.patch_size, norm=False, complete=True
        )

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
        tokens, size = self.embed(x)
        stream = [tokens]
        del tokens  # nobody else holds them while they are updated
        outs, cost = self.run_blocks(
            0, stream.pop(), size, self.valid_mask(x), self.out_indices
        )
        first = 0 if self.apply_layernorm else -1
        outs[first:] = map(self.norm, outs[first:])
        flops = self.patch_embed.flops(size)
        embedding = Cost.constant(flops, len(x), x.device)
        self.cost = Cost.of_stages([Cost.add_up([embedding, cost])])
        return tuple(self._format(out, size) for out in outs)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, C_in, H, W)`` to tokens with their positions.

        Returns:
            tuple[Tensor, tuple[int, int]]: Extra tokens first,
            ``(B, E + h * w, C)``; ``(h, w)``.
        """
        tokens, size = self.patch_embed(x)
        return self.with_positions(
            tokens, size, self.pos_embed, self.pos_size
        ), size

    def with_positions(
        self,
        tokens: Tensor,
        size: tuple[int, int],
        pos_embed: Tensor,
        pos_size: tuple[int, int],
    ) -> Tensor:
        """Add positions to patches, and the extra tokens before them.

        Args:
            tokens (Tensor): ``(B, h * w, C)``.
            size (tuple[int, int]): ``(h, w)``.
            pos_embed (Tensor): Of extra tokens but registers, and a grid.
            pos_size (tuple[int, int]): That grid's rows and columns.

        Returns:
            Tensor: ``(B, E + h * w, C)``.
        """
        extra = [self.cls_token]
        if self.distilled:
            extra.append(self.dist_token)
        extra_pos, pos = pos_embed.tensor_split([len(extra)], 1)
        extra = torch.cat(extra, 1) + extra_pos
        if self.num_extra_tokens > extra.shape[1]:
            extra = torch.cat([extra, self.register_tokens], 1)  # (1, E, C)
        pos = resize_pos_embed(pos, pos_size, size, self.interpolate_mode)
        extra = extra.expand(len(tokens), -1, -1)
        return torch.cat([extra, tokens + pos], 1)

    def _format(
        self, tokens: Tensor, size: tuple[int, int]
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.out_type == 'featmap':
            # (B, E + h * w, C) -> (B, C, h, w)
            tokens = tokens[:, self.num_extra_tokens :]
            return tokens.unflatten(1, size).permute(0, 3, 1, 2)
        if self.distilled:
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
        if part == 'patch_embed' or name in dict(
            self.named_parameters(recurse=False)
        ):
            return 0, num_layers
        return num_layers - 1, num_layers

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """See :class:`Backbone`."""
        return {'pos_embed': (self.pos_size, self.interpolate_mode)}

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Backbone`."""
        told = dict(
            layer_scale_init_value=1e-5 * ('blocks.0.ls1.gamma' in state),
            ffn_type=FFN_TYPES['blocks.0.mlp.w12.weight' in state],
            num_register_tokens=0,
        )
        if 'patch_embed.proj.weight' in state:
            told['patch_size'] = state['patch_embed.proj.weight'].shape[-1]
        if 'register_tokens' in state:
            told['num_register_tokens'] = state['register_tokens'].shape[1]
        return told

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
_HUGGING_FACE = (
    ('embeddings.cls_token', 'cls_token'),
    ('embeddings.distillation_token', 'dist_token'),
    ('embeddings.mask_token', 'mask_token'),
    ('embeddings.register_tokens', 'register_tokens'),
    ('embeddings.position_embeddings', 'pos_embed'),
    ('embeddings.patch_embeddings.projection.', 'patch_embed.proj.'),
    ('encoder.layer.', 'blocks.'),
    ('.attention.attention.query.', '.attn.q.'),
    ('.attention.attention.key.', '.attn.k.'),
    ('.attention.attention.value.', '.attn.v.'),
    ('.attention.output.dense.', '.attn.proj.'),
    ('layernorm.', 'norm.'),
)
OTHER_HEADS = rf'(?!(aux_)?head\.){HEAD}'  # ours are CF-ViT's
_OURS_ALONE = rf'{HEAD}|{ROUTER}|{PREDICTOR}|{COARSE_PASS}'
# Two sets of positions, coarse ones first; forwards and backwards.
CF_VIT = (
    ('^pos_embed_list.0', '^coarse_pos_embed'),
    ('^pos_embed_list.1', '^pos_embed'),
    ('.attn.qkv.', '.attn.q.', 'qkv'),
)

# The first whose mark is found counts.
ViT.layouts = (
    Layout(
        *('ViT', 'vtpack', r'blocks\.\d+\.dge\..*'),  # the official DGE code
        rows=(
            ('.dge.router.', '.router.'),
            ('.dge.splits', '.router.sides', 'splits'),
        ),
        no_place=rf'(.*\.)?router\.(?!gate\.|sides$).*|{PREDICTOR}|{EXTRA_PARTS}'
        rf'|{COARSE_PASS}',
        container='model',
    ),
    Layout(
        *('ViT', 'mmpretrain', r'layers\.\d+\.attn\.qkv\..*'),
        rows=(
            ('.attn.qkv.', '.attn.q.', 'qkv'),
            ('.attn.gamma1.weight', '.ls1.gamma'),
            ('.ffn.gamma2.weight', '.ls2.gamma'),
            ('.ffn.w12.', '.mlp.w12.'),
            ('.ffn.w3.', '.mlp.w3.'),
            *_OPENMMLAB,
        ),
        no_place=rf'register_tokens|{_OURS_ALONE}',
        container='state_dict',
    ),
    Layout(
        *('ViT', 'mmseg', r'layers\.\d+\.attn\.attn\.in_proj_.*'),
        rows=(
            ('.attn.attn.in_proj_', '.attn.q.', 'qkv'),
            ('.attn.attn.out_proj.', '.attn.proj.'),
            *_OPENMMLAB,
        ),
        no_place=rf'dist_token|{EXTRA_PARTS}|{_OURS_ALONE}',
        container='state_dict',
    ),
    Layout(
        *('ViT', 'hf-dinov2', r'encoder\.layer\.\d+\.norm1\..*'),
        rows=(
            *_HUGGING_FACE,
            ('.layer_scale1.lambda1', '.ls1.gamma'),
            ('.layer_scale2.lambda1', '.ls2.gamma'),
            ('.mlp.weights_in.', '.mlp.w12.'),
            ('.mlp.weights_out.', '.mlp.w3.'),
        ),
        no_place=rf'dist_token|{_OURS_ALONE}',
    ),
    Layout(  # DeiT's, too
        *('ViT', 'hf-vit', r'encoder\.layer\.\d+\.layernorm_before\..*'),
        rows=(
            *_HUGGING_FACE,
            ('.layernorm_before.', '.norm1.'),
            ('.layernorm_after.', '.norm2.'),
            ('.intermediate.dense.', '.mlp.fc1.'),
            ('.output.dense.', '.mlp.fc2.'),
        ),
        no_place=rf'{EXTRA_PARTS}|{_OURS_ALONE}',
    ),
    Layout(  # the official CF-ViT
        *('ViT', 'cf-vit', r'pos_embed_list\.1'),
        rows=CF_VIT,
        no_place=rf'dist_token|{ROUTER}|{PREDICTOR}|{EXTRA_PARTS}',
        container='model',
    ),
    Layout(  # DINOv2's, timm's and MAE's, too
        *('ViT', 'official', r'blocks\.\d+\.attn\.qkv\..*'),
        rows=(('.attn.qkv.', '.attn.q.', 'qkv'),),
        no_place=rf'{ROUTER}|{COARSE_PASS}',
        container='model',
    ),
    Layout(
        *('ViT', 'mmdge', r'blocks\.\d+\.attn\.q\..*'),
        no_place=OTHER_HEADS,
        container='state_dict',
    ),
)
