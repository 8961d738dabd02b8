"""The hosts' own backbones, exchanged: their settings, their outputs."""

import pytest
import torch
from mmengine.registry import MODELS

from mmdge.models import hosts
from mmdge.models.architectures import Backbone
from mmdge.utils import UserError
from tests.small import pictures

PVT = dict(
    type='mmdet.PyramidVisionTransformer',
    embed_dims=8,
    num_layers=[1, 2, 1, 1],
    num_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 2, 1],
    pretrain_img_size=64,
)
SIZES = dict(embed_dims=24, num_layers=3, num_heads=3)
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(**SIZES, feedforward_channels=48),
    img_size=(64, 48),
    patch_size=8,
)
MMSEGS_VIT = dict(
    type='mmseg.VisionTransformer',
    **SIZES,
    mlp_ratio=2,
    img_size=64,
    patch_size=8,
)
CASES = dict(
    pvt=PVT,
    pvt_without_biases=dict(PVT, qkv_bias=False, out_indices=(1, 2)),
    vit=VIT,
    vit_maps=dict(
        VIT,
        out_type='featmap',
        out_indices=[0, 1],
        final_norm=False,
        interpolate_mode='bilinear',
        norm_cfg=dict(type='LN', eps=1e-5),
    ),
    dinov2=dict(
        VIT,
        out_indices=[0, -1],
        patch_size=14,
        layer_scale_init_value=1e-5,
        layer_cfgs=dict(ffn_type='swiglu_fused'),
        qkv_bias=False,
    ),
    deit=dict(VIT, type='mmpretrain.DistilledVisionTransformer'),
    mmsegs_vit=dict(MMSEGS_VIT, out_indices=(0, 2), patch_bias=True),
    mmsegs_vit_normed=dict(
        MMSEGS_VIT,
        final_norm=True,
        interpolate_mode='bilinear',
        norm_cfg=dict(type='LN', eps=1e-6, requires_grad=True),
    ),
)


def scope(config):
    name = config['type'].partition('.')[0]
    pytest.importorskip(f'{name}.models')
    return name


@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_outputs_are_the_hosts(case):
    """With the host's own weights, at a size that no stride divides."""
    config, host = CASES[case], scope(CASES[case])
    bare = dict(config, type=config['type'].partition('.')[2])
    with MODELS.switch_scope_and_registry(host) as registry:
        theirs = registry.build(dict(bare))
    theirs.eval()  # which returns nothing in mmpretrain
    for name, parameter in theirs.named_parameters():
        if 'gamma' in name:
            torch.nn.init.uniform_(parameter, -1.5, 1.5)
        elif 'ln' not in name and 'norm' not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = MODELS.build(hosts.to_ours(bare, host)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = pictures(2, 77, 100)
    for mine, own in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-5)


def flat(outputs):
    for one in outputs:
        yield from one if isinstance(one, (list, tuple)) else [one]
