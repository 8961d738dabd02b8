"""What a dynamic backbone is measured against.

The dense twin is the same class with ``routing='finest'``. Here are the
host's own backbone with the same weights, and a smaller static model of the
same class with as many FLOPs as asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from operator import mul
from typing import Any

import torch
from torch import nn

from mmdge.models.architectures import LAYOUTS
from mmdge.models.backbones import DGEPVT, DGEDeiT, DynamicBackbone
from mmdge.models.weights import from_ours
from mmdge.registry import MODELS
from mmdge.utils.counting import flop_counter


def count_flops(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one image, where they don't depend on the image.

    Args:
        backbone (nn.Module): Best on the meta device, where nothing is
            computed; with gradients, as in training.
        size (tuple[int, int]): Height and width of the image.
    """
    device = next(backbone.parameters()).device
    x = torch.ones(1, backbone.in_channels, *size, device=device)
    with flop_counter() as counter:
        backbone(x)
    return counter.get_total_flops() // 2


def host_backbone(twin: DynamicBackbone) -> tuple[str, nn.Module]:
    """Build the host's own backbone with the weights of a dense twin.

    Args:
        twin (DynamicBackbone): With ``routing='finest'``.

    Returns:
        tuple[str, nn.Module]: The host's name, and the backbone in eval mode;
        like ours it has ``in_channels``.

    Raises:
        ImportError: If the host is not installed.
        ValueError: If the host has no such backbone.
    """
    if isinstance(twin, DGEPVT):
        name, host = 'mmdet', _mmdets_pvt(twin)
    elif isinstance(twin, DGEDeiT):
        name, host = 'mmpretrain', _mmpretrains_vit(twin)
    else:
        raise ValueError(
            f'no host has a counterpart of {type(twin).__name__}.'
        )
    (layout,) = (layout for layout in LAYOUTS if layout.name == name)
    weights, dropped = from_ours(twin.state_dict(), layout)
    if dropped:
        raise ValueError(f'{name} has no place for {", ".join(dropped)}.')
    host.load_state_dict(weights)
    host.in_channels = twin.in_channels
    host.eval()  # mmpretrain's returns None
    return name, host


def _mmdets_pvt(twin: DGEPVT) -> nn.Module:
    from mmdet.models.backbones import PyramidVisionTransformer

    arch = twin.arch
    widths = zip(arch['embed_dims'], arch['num_heads'], strict=True)
    head_dims = {dims / heads for dims, heads in widths}
    if twin.out_type != 'featmap' or len(head_dims) > 1:
        raise ValueError(
            "mmdet's PVT has neither a cls token nor heads of several widths."
        )
    num = twin.num_stages
    host = PyramidVisionTransformer(
        pretrain_img_size=twin.pos_sizes[0][0] * twin.strides[0],
        in_channels=twin.in_channels,
        embed_dims=int(head_dims.pop()),
        num_stages=num,
        patch_sizes=twin.patch_sizes[:num],
        strides=twin.patch_sizes[:num],
        paddings=[0] * num,
        out_indices=twin.out_indices,
        drop_path_rate=0.0,
        norm_cfg=dict(type='LN', eps=1e-6),
        **{
            key: list(arch[key][:num])
            for key in ('num_layers', 'num_heads', 'sr_ratios', 'mlp_ratios')
        },
    )
    # mmdet gives all norms one eps; the official code, and ours, 1e-5 here.
    for embed, blocks, *_ in host.layers:
        embed.norm.eps = 1e-5
        for block in blocks[1:]:
            if block.attn.sr_ratio > 1:
                block.attn.norm.eps = 1e-5
    return host


def _mmpretrains_vit(twin: DGEDeiT) -> nn.Module:
    from mmpretrain.models import backbones

    distilled = twin.num_extra_tokens == 2
    kind = backbones.VisionTransformer
    if distilled:
        kind = backbones.DistilledVisionTransformer
    return kind(
        # Blocks that no output depends on are left out here, as in ours.
        arch={**twin.arch, 'num_layers': len(twin.blocks)},
        img_size=twin.pos_size[0] * twin.patch_size,
        patch_size=twin.patch_size,
        in_channels=twin.in_channels,
        out_indices=list(twin.out_indices),
        out_type=twin.out_type,
        final_norm=isinstance(twin.norm, nn.LayerNorm),
    )


def smaller_backbone(
    config: Mapping[str, Any], ratio: float, size: tuple[int, int]
) -> dict[str, Any]:
    """Config of a static backbone of the same class with fewer FLOPs.

    Heads get narrower, in steps of 8 channels, and stages shorter, all to the
    same part as far as whole blocks allow.

    Args:
        config (Mapping): Of a dynamic backbone.
        ratio (float): Of its FLOPs to those of the dense twin; what comes
            closest is returned.
        size (tuple[int, int]): Height and width of the images.
    """
    config = dict(
        config, routing='finest', granularities=(1,), frozen_stages=-1
    )
    full = _on_meta(config)
    depths, wanted = _depths(full), ratio * count_flops(full, size)
    widths = range(8, max(*_head_dims(full.arch), 8) + 1, 8)
    sizes = {width: _affine(config, full, width, size) for width in widths}

    def nearest(spread: float) -> tuple[float, int, tuple[int, ...]]:
        return min(
            (abs(base + sum(map(mul, layers, per_block)) - wanted), w, layers)
            for w, (base, per_block) in sizes.items()
            for layers in _shorter(depths, spread)
        )

    # Proportions are given up where they leave nothing near, as with stages
    # of two blocks.
    found = nearest(0.99)
    if found[0] > 0.03 * wanted:
        found = nearest(1)
    return _scaled(config, full, *found[1:])


def _shorter(
    depths: Sequence[int], spread: float
) -> Iterator[tuple[int, ...]]:
    """Depths cut to the same part, each at most ``spread`` off."""
    for part in range(1, max(depths) + 1):
        exact = [n * part / max(depths) for n in depths]
        yield from product(
            *(
                [n for n in range(1, most + 1) if abs(n - at) <= spread] or [1]
                for at, most in zip(exact, depths, strict=True)
            )
        )


def _affine(
    config: dict, full: DynamicBackbone, width: int, size: tuple[int, int]
) -> tuple[int, list[int]]:
    """FLOPs without blocks, and those of a block of each stage."""
    ones = [1] * len(_depths(full))

    def count(layers: Sequence[int]) -> int:
        return count_flops(
            _on_meta(_scaled(config, full, width, layers)), size
        )

    least = count(ones)
    per_block = [
        count([1 + (i == stage) for i in range(len(ones))]) - least
        for stage in range(len(ones))
    ]
    return least - sum(per_block), per_block


def _scaled(
    config: dict, full: DynamicBackbone, width: int, layers: Sequence[int]
) -> dict:
    """A config with other depths, and ``width`` for the widest head."""
    arch = dict(full.arch)
    part = width / max(_head_dims(arch))
    head_dims = [max(8, 8 * round(part * n / 8)) for n in _head_dims(arch)]
    dims = tuple(
        heads * n
        for heads, n in zip(_values(arch['num_heads']), head_dims, strict=True)
    )
    if isinstance(full, DGEPVT):
        arch.update(num_layers=tuple(layers), embed_dims=dims)
        return dict(config, arch=arch)
    expansion = arch['feedforward_channels'] / arch['embed_dims']
    arch.update(
        num_layers=layers[0],
        embed_dims=dims[0],
        feedforward_channels=round(expansion * dims[0]),
    )
    depth = layers[0] / len(full.blocks)
    outs = {max(1, round(depth * (i + 1))) - 1 for i in full.out_indices}
    return dict(config, arch=arch, out_indices=sorted(outs))


def _on_meta(config: Mapping[str, Any]) -> DynamicBackbone:
    """Build a backbone without weights."""
    with torch.device('meta'):
        return MODELS.build(dict(config, init_cfg=None)).eval()


def _depths(model: DynamicBackbone) -> tuple[int, ...]:
    """Blocks of each stage; a DeiT is one stage, built as far as needed."""
    if isinstance(model, DGEPVT):
        return model.arch['num_layers']
    return (len(model.blocks),)


def _head_dims(arch: Mapping[str, Any]) -> list[int]:
    pairs = zip(
        _values(arch['embed_dims']), _values(arch['num_heads']), strict=True
    )
    return [dims // heads for dims, heads in pairs]


def _values(setting: int | tuple) -> tuple[int, ...]:
    """One value per stage."""
    return (setting,) if isinstance(setting, int) else tuple(setting)
