"""DGE-PVT: the Pyramid Vision Transformer with Dynamic Grained Encoders.

Sources: DGE (Song et al., NeurIPS 2021), PVT (Wang et al., ICCV 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdge.registry import MODELS

from ..architectures import PVT_LAYOUTS
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
class DGEPVT(DynamicBackbone):
    """PVT whose blocks give each region as many queries as it deserves.

    ``routing='finest'`` is its dense twin, the plain PVT. Parameters carry
    the names of the official PVT; its checkpoints and others' load as they
    are, see ``docs/checkpoints.md``.

    Any image size runs. Where the official PVT is defined, its sizes are
    kept (borders that the strides don't divide are cut off); smaller maps
    are padded to one patch.

    What is 0 in all channels counts as padding, which share and error routers
    give the fewest queries: pad after normalising, with 0, as the hosts do.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'medium'``, ``'large'``,
            or a dict with ``embed_dims``, ``num_layers``, ``num_heads``,
            ``mlp_ratios`` and ``sr_ratios``, each of one value per stage.
            Defaults to ``'small'``.
        granularities (Sequence[int] | Sequence[Sequence[int]]): Candidate
            sides of a patch in tokens, finest first, each dividing the last,
            which is the region's side: one set for all stages, or one per
            stage. Defaults to (1, 2, 4).
        routing (str | dict | Sequence): ``'learned'`` (the paper's router),
            ``'variance'`` (by the variance inside the region, without
            parameters), ``'error'`` (by the error that it predicts, see
            ``docs/budgets.md``), the controls ``'oracle'``, ``'shuffled'``,
            ``'random'`` and ``'uniform'``, ``'finest'`` (the dense twin), or
            a router's
            config, e.g. ``dict(type='QuantileRouter', score='learned')``; a
            list gives one per stage. Defaults to ``'learned'``.
        price (float): At test time the choice is ``argmax(logit_k - price *
            cost_k)``. Defaults to 0, the router as it was trained.
        sparse_training (bool): In training compute only the granularity that
            was chosen, instead of all of them. Routers without parameters
            always do. Defaults to False.
        with_cls_token (bool): Append a cls token in the last stage, as the
            official code does. Defaults to False, as usual for dense tasks.
        out_type (str): ``'featmap'``: maps of the stages ``out_indices``,
            without a final norm; ``'cls_token'``: the normed cls token
            ``(B, C)``, which needs ``with_cls_token``. Defaults to
            ``'featmap'``.
        out_indices (int | Sequence[int]): Stages whose maps are returned,
            ascending, negative ones counted from the end; later stages are
            not built. Defaults to (0, 1, 2, 3), of strides 4, 8, 16, 32.
        drop_path_rate (float): Stochastic depth per sample, rising linearly
            over the blocks from 0 to this. Defaults to 0.1.
        frozen_stages (int): The first so many stages are not trained; their
            routers still learn how the regions' scores are distributed.
            Defaults to -1, like 0 none.
        with_cp (bool): Recompute blocks in the backward pass to save memory.
            Defaults to False.
        pretrain_img_size (int | Sequence[int]): Side, or height and width, of
            the images for which the position embeddings are laid out.
            Defaults to 224.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict, optional): E.g. ``dict(type='Pretrained',
            checkpoint=...)``. Defaults to None: truncated normal weights.

    Example:
        >>> model = DGEPVT(arch='tiny', routing='variance').eval()
        >>> maps = model(torch.rand(1, 3, 224, 224))
        >>> [tuple(m.shape) for m in maps][0], model.cost.ratio.shape
        ((1, 64, 56, 56), torch.Size([1]))
    """

    layouts = PVT_LAYOUTS
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

    def __init__(
        self,
        arch: str | dict = 'small',
        granularities: Sequence = (1, 2, 4),
        routing: str | dict | Sequence = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        with_cls_token: bool = False,
        out_type: str = 'featmap',
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        pretrain_img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = self._check_arch(arch)
        num_stages = len(self.patch_sizes)
        self._check_out_type(out_type)
        if out_type == 'cls_token' and not with_cls_token:
            raise ValueError("out_type='cls_token' needs with_cls_token=True.")
        if not isinstance(frozen_stages, int) or frozen_stages > num_stages:
            raise ValueError(
                f'frozen_stages={frozen_stages!r} must be an integer of at '
                f'most {num_stages}.'
            )
        height, width = self._check_img_size(
            pretrain_img_size, math.prod(self.patch_sizes)
        )
        self.granularities = check_granularities(granularities, num_stages)
        if not isinstance(routing, (list, tuple)):
            routing = [routing] * num_stages
        if len(routing) != num_stages:
            raise ValueError(
                f'routing={routing} must be one routing, or {num_stages}, one '
                'per stage.'
            )
        self.arch = arch
        self.out_type = out_type
        self.out_indices = check_out_indices(out_indices, num_stages)
        self.frozen_stages = frozen_stages
        self.in_channels = in_channels
        # A stage that no output depends on would be trained by nothing.
        self.num_stages = num_stages
        if out_type == 'featmap':
            self.num_stages = self.out_indices[-1] + 1

        depths = arch['num_layers']
        drop_path = drop_path_rates(drop_path_rate, sum(depths))
        self.strides, self.region_sizes, self.pos_sizes = [], [], []
        channels, stride = in_channels, 1
        for i, dims in enumerate(arch['embed_dims'][: self.num_stages]):
            stride *= self.patch_sizes[i]
            size = (height // stride, width // stride)
            self.strides.append(stride)
            self.region_sizes.append(stride * self.granularities[i][-1])
            self.pos_sizes.append(size)
            embed = PatchEmbed(channels, dims, self.patch_sizes[i])
            extra = int(with_cls_token and i == num_stages - 1)
            pos = nn.Parameter(torch.zeros(1, extra + math.prod(size), dims))
            blocks = nn.ModuleList(
                DGEBlock(
                    dims,
                    arch['num_heads'][i],
                    int(dims * arch['mlp_ratios'][i]),
                    arch['sr_ratios'][i],
                    self.granularities[i],
                    routing[i],
                    price=price,
                    sparse_training=sparse_training,
                    drop_path=drop_path.pop(0),
                    with_cp=with_cp,
                    name=f'block{i + 1}.{j}',
                )
                for j in range(depths[i])
            )
            setattr(self, f'patch_embed{i + 1}', embed)
            setattr(self, f'pos_embed{i + 1}', pos)
            setattr(self, f'block{i + 1}', blocks)
            channels = dims
        if with_cls_token and self.num_stages == num_stages:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        if out_type == 'cls_token':
            self.norm = nn.LayerNorm(channels, eps=1e-6)

        self._init_parameters()
        self._freeze()

    @classmethod
    def _check_arch(cls, arch: str | dict) -> dict:
        arch = {**cls.arch_defaults, **cls._look_up(arch)}
        names = {'num_layers', *cls.arch_defaults}
        num_stages = len(cls.patch_sizes)
        if set(arch) != names or any(
            not isinstance(values, (list, tuple)) or len(values) != num_stages
            for values in arch.values()
        ):
            raise ValueError(
                f'arch must give {num_stages} values to each of '
                f'{sorted(names)}, but got {arch}.'
            )
        return arch

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """See :class:`DynamicBackbone`."""
        later = range(self.num_stages + 1, len(self.patch_sizes) + 1)
        parts = ('patch_embed', 'pos_embed', 'block')
        return tuple(f'{part}{i}' for i in later for part in parts)

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """See :class:`DynamicBackbone`."""
        return {
            f'pos_embed{i}': (size, 'bilinear')
            for i, size in enumerate(self.pos_sizes, start=1)
        }

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`DynamicBackbone`."""
        modules = [
            getattr(self, f'{name}{i + 1}')
            for i in range(min(self.frozen_stages, self.num_stages))
            for name in ('patch_embed', 'block')
        ]
        if self.frozen_stages >= self.num_stages and hasattr(self, 'norm'):
            modules.append(self.norm)
        return modules

    def _freeze(self) -> None:
        for i in range(min(self.frozen_stages, self.num_stages)):
            getattr(self, f'pos_embed{i + 1}').requires_grad_(False)
            # The cls token enters with the last stage.
            if i == len(self.patch_sizes) - 1 and hasattr(self, 'cls_token'):
                self.cls_token.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps and set :attr:`cost`.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``, any size.

        Returns:
            tuple[Tensor]: ``(B, C_i, H_i, W_i)`` of each stage in
            ``out_indices``, or one ``(B, C)`` if ``out_type='cls_token'``.
        """
        self.check_images(x)
        outs, costs = [], []
        content = self.content(x, math.gcd(*self.region_sizes))
        for i in range(self.num_stages):
            tokens, size, cost = self._stage(i, x, content)
            costs.append(cost)
            num_extra = tokens.shape[1] - size[0] * size[1]
            # (B, E + H * W, C) -> (B, C, H, W)
            x = tokens[:, num_extra:].unflatten(1, size).permute(0, 3, 1, 2)
            if i in self.out_indices:
                outs.append(x)
        self.cost = Cost.of_stages(costs)
        if self.out_type == 'cls_token':
            return (self.norm(tokens[:, 0]),)
        return tuple(outs)

    def _stage(
        self, i: int, x: Tensor, content: Tensor | None
    ) -> tuple[Tensor, tuple[int, int], Cost]:
        """Run stage ``i`` on a map; return tokens, their size, their cost."""
        embed = getattr(self, f'patch_embed{i + 1}')
        tokens, size = embed(x)
        pos = getattr(self, f'pos_embed{i + 1}')
        side = self.pos_sizes[i]
        extra_pos, pos = pos.tensor_split(
            [pos.shape[1] - side[0] * side[1]], 1
        )
        tokens = tokens + resize_pos_embed(pos, side, size)
        if extra_pos.shape[1]:
            cls_token = (self.cls_token + extra_pos).expand(len(x), -1, -1)
            tokens = torch.cat([cls_token, tokens], dim=1)
        costs = [Cost.constant(embed.flops(size), len(x), x.device)]
        content = content_regions(
            content,
            patch_grid(size, self.granularities[i][-1]),
            self.region_sizes[i] // math.gcd(*self.region_sizes),
        )
        for block in getattr(self, f'block{i + 1}'):
            tokens, cost = block(tokens, size, self.strides[i], content)
            costs.append(cost)
        return tokens, size, Cost.add_up(costs)
