"""Small backbones whose blocks do something, and pictures for them."""

import torch
from torch import nn

from mmdge.calibration import collect_errors
from mmdge.models import (
    DGEDPVT,
    DGEPVT,
    CFLVViT,
    CFViT,
    DGEConvNeXt,
    DGEDeiT,
    DGEPVTv2,
    DGESwin,
    DGEViT,
    DynamicConvNeXt,
    DynamicLVViT,
    DynamicSwin,
    DynamicViT,
    MergingViT,
    MixedPatchViT,
    TokenRoutingPVT,
)
from mmdge.models.architectures import LVViT
from mmdge.models.routing import EffectRouter, ErrorRouter, OracleRouter

PVT = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 2, 1, 1), num_heads=(1, 2, 2, 4)
)
CONVNEXT = dict(depths=(1, 1, 2, 1), channels=(8, 16, 16, 32))
SWIN = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4))
PVT_V2 = dict(PVT, mlp_ratios=(4, 2, 2, 2))
DEIT = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)
QUIET = dict(type='GumbelRouter', noise=False)
DINO = dict(  # what DINOv2 has, in its giant with registers
    layer_scale_init_value=1.0,
    ffn_type='swiglu_fused',
    num_register_tokens=2,
)


class DGELVViT(DGEViT, LVViT):
    """Registered nowhere: that a method knows no architecture."""


def pvt(routing='learned', **kwargs):
    return _build(DGEPVT, dict(arch=PVT, routing=routing, **kwargs))


def dpvt(routing='learned', **kwargs):
    model = _build(DGEDPVT, dict(arch=PVT, routing=routing, **kwargs))
    for name, parameter in model.named_parameters():
        if '.offsets.' in name:
            nn.init.normal_(parameter, std=0.5)  # tokens look elsewhere
    return model


def swin(routing=QUIET, **kwargs):
    defaults = dict(arch=SWIN, window_size=4, drop_path_rate=0.0)
    model = DGESwin(**{**defaults, **kwargs}, routing=routing)
    for name, parameter in model.named_parameters():
        if '.attn.' in name and name.endswith('bias'):
            nn.init.normal_(parameter, std=0.1)  # what padding becomes
    return shaken(model)


def pvt_v2(routing='learned', linear=False, **kwargs):
    arch = dict(PVT_V2, linear=linear)
    kwargs = dict(arch=arch, routing=routing, drop_path_rate=0.0) | kwargs
    return shaken(DGEPVTv2(**kwargs))


def token_routing(linear=False, **kwargs):
    arch = dict(PVT_V2, linear=linear)
    return shaken(TokenRoutingPVT(arch, **dict(drop_path_rate=0.0) | kwargs))


def deit(routing='learned', patch_size=8, **kwargs):
    kwargs = dict(arch=DEIT, patch_size=patch_size, **kwargs)
    return _build(DGEDeiT, dict(routing=routing, **kwargs))


def dinov2(routing='learned', patch_size=14, **kwargs):
    kwargs = {**DINO, 'arch': DEIT, 'patch_size': patch_size, **kwargs}
    return _build(DGEViT, dict(routing=routing, **kwargs))


def convnext(routing='learned', **kwargs):
    kwargs = {'arch': CONVNEXT, 'drop_path_rate': 0.0, **kwargs}
    return shaken(DGEConvNeXt(routing=routing, **kwargs))


def dynamic_vit(patch_size=8, pruning_loc=(0, 1), **kwargs):
    kwargs = dict(arch=DEIT, patch_size=patch_size, **kwargs)
    return _build(DynamicViT, dict(pruning_loc=pruning_loc, **kwargs))


def dynamic_lvvit(patch_size=8, pruning_loc=(0, 1), **kwargs):
    # Batches of BatchNorm's own would not equal their images.
    kwargs = dict(arch=DEIT, patch_size=patch_size, norm_eval=True, **kwargs)
    return _build(DynamicLVViT, dict(pruning_loc=pruning_loc, **kwargs))


def cf_vit(patch_size=8, **kwargs):
    return _two_passes(CFViT, dict(patch_size=patch_size, **kwargs))


def cf_lvvit(patch_size=8, **kwargs):
    kwargs = dict(patch_size=patch_size, norm_eval=True, **kwargs)
    return _two_passes(CFLVViT, kwargs)


def _two_passes(family, kwargs):
    model = _build(family, dict(arch=DEIT, **kwargs))
    if model.router is not None:  # it starts at 0
        nn.init.normal_(model.reuse_block[1].fc2.weight, std=0.2)
    if kwargs.get('price'):
        logits, scale = model(pictures(9, 96, 96))[0].detach(), 1.0
        for step in range(1, 30):  # half of the images are sure
            sure = (scale * logits).softmax(-1).amax(-1).median()
            scale *= 1.5 ** ((1 if sure < 1 - kwargs['price'] else -1) / step)
        model.head.weight.data.mul_(scale)
    return model


def mixed_patch_vit(patch_size=8, **kwargs):
    return _build(
        MixedPatchViT, dict(arch=DEIT, patch_size=patch_size, **kwargs)
    )


def merging_vit(patch_size=8, **kwargs):
    return _build(MergingViT, dict(arch=DEIT, patch_size=patch_size, **kwargs))


def _build(family, kwargs):
    defaults = dict(drop_path_rate=0.0, pretrain_img_size=64)
    return shaken(family(**{**defaults, **kwargs}))


def shaken(model):
    """Out of the linear regime around zero, with decisions that differ."""
    for name, parameter in model.named_parameters():
        if name.endswith('.gamma'):
            nn.init.uniform_(parameter, -1.5, 1.5)
        elif 'norm' not in name and '.router.' not in name:
            parameter.data.mul_(4)
        elif '.gate.weight' in name:
            nn.init.normal_(parameter, std=0.5)
        elif '.gate.bias' in name:
            nn.init.zeros_(parameter)
    if any(isinstance(router, ErrorRouter) for router in model.routers):
        calibrate(model.eval())
    for router in model.routers:
        if isinstance(router, EffectRouter):
            nn.init.normal_(router.weight)
            router.own_price.fill_(0.1)
    return model.train()


def calibrate(model):
    """No two error routers are alike; half of the regions are worth it."""
    seen = collect_errors(model, [pictures(4, 96, 96)])
    for router, entry in zip(model.routers, seen, strict=True):
        if not isinstance(router, ErrorRouter):
            continue
        router.scale.mul_(0.5 + torch.rand(len(router.scale)))
        router.exponent.add_(torch.rand(len(router.exponent)) - 0.5)
        errors = router.scale[-1] * entry.variance ** router.exponent[-1]
        if isinstance(router, OracleRouter):
            errors = entry.errors[:, -1]
        router.weight.copy_(1 / errors.median())


def pictures(num, height, width):
    """Images whose parts differ, each but the first with some padding."""
    grid = -(-height // 16), -(-width // 16)
    colours = torch.randn(num, 3, *grid).repeat_interleave(16, 2)
    colours = 3 * colours.repeat_interleave(16, 3)[..., :height, :width]
    rough = torch.rand(num, 1, *grid).square().repeat_interleave(16, 2)
    rough = rough.repeat_interleave(16, 3)[..., :height, :width]
    images = colours + 3 * rough * torch.randn(num, 3, height, width)
    for number, image in enumerate(images):
        image[..., width - number * width // (2 * num) :] = 0
    return images


def dynamic_swin(pruning_loc=(0, 1), **kwargs):
    kwargs = {'arch': SWIN, 'window_size': 4, 'drop_path_rate': 0.0, **kwargs}
    return shaken(DynamicSwin(pruning_loc=pruning_loc, **kwargs))


def dynamic_convnext(pruning_loc=(0, 1), **kwargs):
    kwargs = {'arch': CONVNEXT, 'drop_path_rate': 0.0, **kwargs}
    return shaken(DynamicConvNeXt(pruning_loc=pruning_loc, **kwargs))
