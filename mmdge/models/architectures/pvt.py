"""PVT, the Pyramid Vision Transformer (Wang et al., ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import Cost
from ..layers import PatchEmbed, TransformerBlock, resize_pos_embed
from ..weights import HEAD, ROUTER, Layout
from .base import (
    Backbone,
    check_arguments,
    check_out_indices,
    check_stages,
    drop_path_rates,
    image_size,
    look_up,
)


class PVT(Backbone):
    """Pyramid Vision Transformer, equal to ``mmdet.PyramidVisionTransformer``.

    Parameters carry the names of the official code. Any image size runs.
    Where the official PVT is defined, its sizes are kept (borders that the
    strides don't divide are cut off); smaller maps are padded to one patch.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'medium'``, ``'large'``,
            or a dict with ``embed_dims``, ``num_layers``, ``num_heads``,
            ``mlp_ratios`` and ``sr_ratios``, each of one value per stage.
            Defaults to ``'small'``.
        with_cls_token (bool): Append a cls token in the last stage, as the
            official classifier does. Defaults to False, as usual for dense
            tasks.
        out_type (str): ``'featmap'``: maps of the stages ``out_indices``,
            without a final norm; ``'cls_token'``: the normed cls token
            ``(B, C)``, which needs ``with_cls_token``. Defaults to
            ``'featmap'``.
        out_indices (int | Sequence[int]): Stages whose maps are returned,
            ascending, negative ones counted from the end; later stages are
            not built. Defaults to (0, 1, 2, 3), of strides 4, 8, 16, 32.
        drop_path_rate (float): Stochastic depth per sample, rising linearly
            over the blocks from 0 to this. Defaults to 0.1.
        frozen_stages (int): The first so many stages are not trained; what
            their routers remember of images goes on. Defaults to -1, like 0
            none.
        with_cp (bool): Recompute blocks in the backward pass to save memory.
            Defaults to False.
        pretrain_img_size (int | tuple[int, int]): Side, or height and width,
            of the images for which the position embeddings are laid out.
            Defaults to 224.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict, optional): E.g. ``dict(type='Pretrained',
            checkpoint=...)``. Defaults to None: truncated normal weights.
        norm_eps (float, optional): Of all layer norms. mmdet's is 1e-6.
            Defaults to None, as in the official code: 1e-6 in blocks, and
            1e-5 of patches and of reduced keys.
    """

    arch_zoo = {
        'tiny': dict(num_layers=(2, 2, 2, 2)),
        'small': dict(num_layers=(3, 4, 6, 3)),
        'medium': dict(num_layers=(3, 4, 18, 3)),
        'large': dict(num_layers=(3, 8, 27, 3)),
    }
    arch_defaults = dict(
        embed_dims=(64, 128, 320, 512),
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(8, 8, 4, 4),
        sr_ratios=(8, 4, 2, 1),
    )
    patch_sizes = (4, 2, 2, 2)
    # What PVTv2 does otherwise.
    overlap, norm_after_stage, has_positions = False, False, True
    ffn_type = 'origin'
    out_types = ('featmap', 'cls_token')

    def __init__(
        self,
        arch: str | dict = 'small',
        with_cls_token: bool = False,
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
        super().__init__(init_cfg=init_cfg)
        arch = look_up(arch, self.arch_zoo, self.arch_defaults)
        num_stages = len(self.patch_sizes)
        sizes = {key: arch[key] for key in arch if key != 'linear'}
        check_stages(sizes, num_stages)
        if not isinstance(arch.get('linear', False), bool):
            raise UserError(
                f'linear must be a bool, but got {arch["linear"]!r}.'
            )
        check_arguments(out_type, frozen_stages, num_stages, self.out_types)
        if out_type == 'cls_token' and not with_cls_token:
            raise UserError("out_type='cls_token' needs with_cls_token=True.")
        height, width = image_size(
            pretrain_img_size, math.prod(self.patch_sizes)
        )
        self.arch = arch
        self.out_type = out_type
        self.out_indices = check_out_indices(out_indices, num_stages)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.in_channels = in_channels
        # A stage that no output depends on would be trained by nothing.
        self.num_stages = num_stages
        if out_type == 'featmap':
            self.num_stages = self.out_indices[-1] + 1

        depths = arch['num_layers']
        drop_path = drop_path_rates(drop_path_rate, sum(depths))
        self.strides, self.pos_sizes = [], []
        channels, stride = in_channels, 1
        for i, dims in enumerate(arch['embed_dims'][: self.num_stages]):
            stride *= self.patch_sizes[i]
            self.strides.append(stride)
            embed = PatchEmbed(
                channels, dims, self.patch_sizes[i], overlap=self.overlap
            )
            blocks = nn.ModuleList(
                self._block(i, drop_path.pop(0), f'block{i + 1}.{j}')
                for j in range(depths[i])
            )
            setattr(self, f'patch_embed{i + 1}', embed)
            setattr(self, f'block{i + 1}', blocks)
            if self.norm_after_stage:
                norm = nn.LayerNorm(dims, eps=1e-6)
                setattr(self, f'norm{i + 1}', norm)
            if self.has_positions:
                grid = height // stride, width // stride
                self.pos_sizes.append(grid)
                num = with_cls_token and i == num_stages - 1
                num += math.prod(grid)
                pos = nn.Parameter(torch.zeros(1, num, dims))
                setattr(self, f'pos_embed{i + 1}', pos)
            channels = dims
        if with_cls_token and self.num_stages == num_stages:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        if out_type != 'featmap':
            self.norm = nn.LayerNorm(channels, eps=1e-6)

        self._set_norm_eps(norm_eps)
        self._init_parameters()
        for parameter in self._frozen_parameters():
            parameter.requires_grad_(False)

    @property
    def stages(self) -> list[nn.ModuleList]:
        """The blocks, stage by stage."""
        return [getattr(self, f'block{i + 1}') for i in range(self.num_stages)]

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
            ``out_indices``, or one ``(B, C)`` if ``out_type`` is another than
            ``'featmap'``.
        """
        self.check_images(x)
        mask = self.valid_mask(x)
        outs, costs = [], []
        for i in range(self.num_stages):
            tokens, size, embed_flops = self._embed(i, x)
            num_extra = tokens.shape[1] - size[0] * size[1]
            last = len(self.stages[i]) - 1
            stream = [tokens]
            del tokens  # nobody else holds them while they are updated
            (tokens,), cost = self.run_blocks(
                i, stream.pop(), size, mask, [last]
            )
            embedding = Cost.constant(embed_flops, len(x), x.device)
            costs.append(Cost.add_up([embedding, cost]))
            if self.norm_after_stage:
                tokens = getattr(self, f'norm{i + 1}')(tokens)
            # (B, E + H * W, C) -> (B, C, H, W)
            x = tokens[:, num_extra:].unflatten(1, size).permute(0, 3, 1, 2)
            if i in self.out_indices:
                outs.append(x)
        self.cost = Cost.of_stages(costs)
        if self.out_type == 'cls_token':
            return (self.norm(tokens[:, 0]),)
        if self.out_type == 'avg_featmap':
            return (self.norm(tokens).mean(1),)
        return tuple(outs)

    def _block(self, i: int, drop_path: float, name: str) -> TransformerBlock:
        """A block of a stage."""
        arch, dims = self.arch, self.arch['embed_dims'][i]
        return TransformerBlock(
            dims,
            arch['num_heads'][i],
            int(dims * arch['mlp_ratios'][i]),
            arch['sr_ratios'][i],
            drop_path=drop_path,
            name=name,
            ffn_type=self.ffn_type,
            linear=arch.get('linear', False),
        )

    def embedding(self, stage: int) -> PatchEmbed:
        """What makes the tokens of a stage."""
        return getattr(self, f'patch_embed{stage + 1}')

    def _embed(self, i: int, x: Tensor) -> tuple[Tensor, tuple[int, int], int]:
        """Tokens of a stage with their positions, their size, the FLOPs."""
        embed = self.embedding(i)
        tokens, size = embed(x)
        if not self.has_positions:
            return tokens, size, embed.flops(size)
        pos = getattr(self, f'pos_embed{i + 1}')
        grid = self.pos_sizes[i]
        extra_pos, pos = pos.tensor_split([pos.shape[1] - math.prod(grid)], 1)
        tokens = tokens + resize_pos_embed(pos, grid, size)
        if extra_pos.shape[1]:
            cls_token = (self.cls_token + extra_pos).expand(len(x), -1, -1)
            tokens = torch.cat([cls_token, tokens], dim=1)
        return tokens, size, embed.flops(size)

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`Backbone`."""
        names = ['patch_embed', 'block']
        if self.norm_after_stage:
            names.append('norm')
        modules = [
            getattr(self, f'{name}{i + 1}')
            for i in range(min(self.frozen_stages, self.num_stages))
            for name in names
        ]
        if self.frozen_stages >= self.num_stages and hasattr(self, 'norm'):
            modules.append(self.norm)
        return modules

    def _frozen_parameters(self) -> list[nn.Parameter]:
        frozen = [p for m in self.frozen_modules() for p in m.parameters()]
        for i in range(min(self.frozen_stages, len(self.pos_sizes))):
            frozen.append(getattr(self, f'pos_embed{i + 1}'))
        # The cls token enters with the last stage.
        if self.frozen_stages == len(self.patch_sizes):
            frozen += [
                p for n, p in self.named_parameters() if n == 'cls_token'
            ]
        return frozen

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, see :meth:`ViT.get_layer_depth`.

        The embeddings of later stages go with the stage's first block, the
        norm of a stage with its last.
        """
        depths = [len(blocks) for blocks in self.stages]
        num_layers = sum(depths) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or name.startswith('norm.'):
            return num_layers - 1, num_layers
        if name == 'cls_token':
            return sum(depths[:-1]) + 1, num_layers
        part, _, rest = name.partition('.')
        stage = int(part[-1]) - 1
        before = sum(depths[:stage])
        if part.startswith('block'):
            return before + int(rest.partition('.')[0]) + 1, num_layers
        if part.startswith('norm'):
            return before + depths[stage], num_layers
        return before + 1 if stage else 0, num_layers

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """See :class:`Backbone`."""
        return {
            f'pos_embed{i}': (size, 'bilinear')
            for i, size in enumerate(self.pos_sizes, start=1)
        }

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """How the entries of the stages begin that no output needs."""
        later = range(self.num_stages + 1, len(self.patch_sizes) + 1)
        parts = ('patch_embed', 'pos_embed', 'block', 'norm')
        return tuple(f'{part}{i}' for i in later for part in parts)


ROUTED = r'block\d\.\d+\.router\..*'
_PVT = (r'pos_embed\d', r'block\d\.\d+\.attn\.q\..*')

# The names that PVT's weights have in other code bases.
# The first whose mark is found counts.
PVT.layouts = (
    Layout(
        *('PVT', 'vtpack', r'block\d\.\d+\.dge\..*'),  # the official DGE code
        rows=(
            ('.dge.router.', '.router.'),
            ('.dge.splits', '.router.sides', 'splits'),
        ),
        no_place=r'.*\.router\.(?!gate\.|sides$).*',
        container='model',
    ),
    Layout('PVT', 'mmdge', (*_PVT, ROUTED), (), HEAD, 'state_dict'),
    Layout(
        *('PVT', 'mmdet', r'layers\.\d\.1\.0\.pos_embed'),
        rows=(
            ('.attn.attn.in_proj_', '.attn.q.', 'qkv'),
            ('.attn.attn.out_proj.', '.attn.proj.'),
            ('.ffn.layers.0.', '.mlp.fc1.', 'conv'),
            ('.ffn.layers.3.', '.mlp.fc2.', 'conv'),
            *(
                row
                for s in range(1, 5)
                for row in (
                    (f'layers.{s - 1}.0.projection.', f'patch_embed{s}.proj.'),
                    (f'layers.{s - 1}.0.norm.', f'patch_embed{s}.norm.'),
                    (f'layers.{s - 1}.1.0.pos_embed', f'pos_embed{s}'),
                    *(
                        (f'layers.{s - 1}.1.{j + 1}.', f'block{s}.{j}.')
                        for j in range(99)  # blocks of a stage
                    ),
                )
            ),
        ),
        no_place=rf'cls_token|norm\..*|{HEAD}|{ROUTER}',
        container='state_dict',
    ),
    # A static PVT of ours has the same names.
    Layout('PVT', 'official', _PVT, (), ROUTER),
)
