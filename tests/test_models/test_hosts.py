"""The hosts' own backbones, exchanged: their settings, their outputs."""

import pytest
import torch
from mmengine.registry import MODELS

from mmdge.models import hosts
from mmdge.models.methods import FastPath, MixedPatches
from mmdge.models.weights import from_ours, recognise
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
V2 = {key: PVT[key] for key in PVT if key != 'pretrain_img_size'}
V2 |= dict(type='mmdet.PyramidVisionTransformerV2')
MIT = dict(V2, type='mmseg.MixVisionTransformer')
SWIN = dict(embed_dims=8, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 4])
MMDETS_SWIN = dict(type='mmdet.SwinTransformer', **SWIN)
MMPRETRAINS_SWIN = dict(
    type='mmpretrain.SwinTransformer', arch=SWIN, img_size=64
)
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 16, 24]),
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
    pvt_v2=dict(V2, mlp_ratios=[4, 4, 4, 4], out_indices=(1, 3)),
    mit=dict(MIT, mlp_ratio=2),
    swin=dict(MMDETS_SWIN, window_size=4, out_indices=(1, 3)),
    mmsegs_swin=dict(
        MMDETS_SWIN, type='mmseg.SwinTransformer', qkv_bias=False
    ),
    mmpretrains_swin=dict(
        MMPRETRAINS_SWIN, stage_cfgs=dict(block_cfgs=dict(window_size=3))
    ),
    mmpretrains_swin_padded=dict(
        MMPRETRAINS_SWIN, pad_small_map=True, out_indices=(0, 3)
    ),
    convnext=dict(CONVNEXT, layer_scale_init_value=1.0),
    convnext_maps=dict(
        CONVNEXT,
        gap_before_final_norm=False,
        linear_pw_conv=False,
        layer_scale_init_value=0.0,
        out_indices=(0, 2, 3),
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


class TestMistakes:
    @pytest.mark.parametrize(
        ('config', 'message'),
        [
            (
                dict(PVT, use_conv_ffn=True, norm_cfg=dict(type='BN')),
                'mmdet.PyramidVisionTransformer with use_conv_ffn=True, '
                "norm_cfg={'type': 'BN'} has no dynamic form; with "
                "use_conv_ffn=False, norm_cfg={'type': 'LN', 'eps': 1e-06} it "
                'is mmdge.DGEPVT',
            ),
            (dict(PVT, act_cfg=dict(type='ReLU')), "{'type': 'GELU'} it is"),
            (dict(PVT, norm_cfg=None), 'with norm_cfg=None has no dynamic'),
            (dict(PVT, arch='small'), 'Transformer has no argument arch'),
            (dict(VIT, arch='vast'), "arch='vast' is none of s, small, b, "),
            (dict(VIT, pre_norm=True), 'with pre_norm=True has no'),
            (dict(VIT, out_type='raw'), "with out_type='cls_token' it is"),
            (dict(VIT, with_cls_token=False), 'with with_cls_token=False has'),
            (dict(VIT, layer_cfgs=dict(num_fcs=3)), "with layer_cfgs={'num_f"),
            (
                dict(MMSEGS_VIT, out_origin=True, output_cls_token=True),
                'with out_origin=True, output_cls_token=True has no dynamic',
            ),
            (dict(MMSEGS_VIT, patch_pad=None), 'with patch_pad=None has no'),
            (
                dict(MMDETS_SWIN, use_abs_pos_embed=True, qk_scale=0.1),
                'with qk_scale=0.1, use_abs_pos_embed=True has no dynamic',
            ),
            (
                dict(MMPRETRAINS_SWIN, out_after_downsample=True),
                'with out_after_downsample=True has no dynamic form',
            ),
            (dict(CONVNEXT, use_grn=True), 'with use_grn=True has no dynamic'),
        ],
    )
    def test_settings_without_a_form_are_named(self, config, message):
        with pytest.raises(UserError) as info:
            hosts.to_ours(config, scope(config))
        assert message in str(info.value)


def test_what_has_no_effect_is_dropped():
    config = dict(
        PVT,
        init_cfg=dict(type='Pretrained', checkpoint='none.pth'),
        act_cfg=dict(type='GELU'),
        convert_weights=False,
        paddings=(0, 0, 0, 0),
        drop_rate=0.1,
    )
    ours = hosts.to_ours(config, scope(config))
    assert ours == hosts.to_ours(PVT, 'mmdet')


def test_what_is_carried_over():
    config = dict(
        type='VisionTransformer',
        arch='DeiT-small',
        img_size=518,
        patch_size=(14, 14),
        frozen_stages=2,
        drop_path_rate=0.2,
        out_indices=[2, 5],
        out_type='featmap',
    )
    scope(VIT)
    assert hosts.to_ours(config, 'mmpretrain') == dict(
        type='mmdge.DGEViT',
        arch='small',
        pretrain_img_size=(518, 518),
        norm_eps=1e-6,
        patch_size=14,
        frozen_stages=2,
        drop_path_rate=0.2,
        out_indices=[2, 5],
        layer_scale_init_value=0.0,
        routing='finest',
    )


@pytest.mark.parametrize('given', [-1, 0, 2])
def test_frozen_stages_are_counted_as_by_the_host(given):
    """mmpretrain's 0 freezes a stage, mmdet's the patch embedding alone."""
    for config in (MMDETS_SWIN, dict(MMPRETRAINS_SWIN, out_indices=(0, 2, 3))):
        scope(config)
        config = dict(config, frozen_stages=given)
        theirs = MODELS.build(dict(config))
        theirs.train()  # where mmpretrain freezes
        ours = MODELS.build(hosts.to_ours(config))
        layout = recognise(theirs.state_dict(), ours.layouts)
        renamed, _ = from_ours(dict(ours.named_parameters()), layout)
        assert trained(renamed.items()) == trained(theirs.named_parameters())


def test_a_vit_has_other_methods():
    ours = hosts.to_ours(VIT, scope(VIT), MixedPatches)
    assert ours['type'] == 'mmdge.MixedPatchViT'
    with pytest.raises(UserError) as info:
        hosts.to_ours(PVT, scope(PVT), FastPath)
    assert str(info.value) == (
        'mmdet.PyramidVisionTransformer has no form for this --method; that '
        'have mmdet.SwinTransformer, mmpretrain.SwinTransformer, '
        'mmpretrain.ConvNeXt, mmseg.SwinTransformer'
    )


def test_a_scope_of_its_own_goes_before():
    name = scope(MMPRETRAINS_SWIN)
    bare = dict(MMPRETRAINS_SWIN, type='SwinTransformer', _scope_=name)
    expected = hosts.to_ours(MMPRETRAINS_SWIN)
    assert hosts.to_ours(bare, 'mmdet') == expected
    bare = dict(type='ConvNeXt', _scope_=name)
    inside = dict(type='Wrapper', inner=bare)
    assert hosts.wrapped(inside, 'mmdet') == ['model.inner, a ConvNeXt']


def test_other_types_and_none_are_left_alone():
    for kind in ('mmdet.ResNet', 'mmdge.DGEPVT', 'Unheard'):
        assert hosts.to_ours(dict(type=kind), 'mmdet') is None
    assert hosts.to_ours({}, 'mmdet') is None


def trained(parameters):
    return {name for name, each in parameters if each.requires_grad}


def flat(outputs):
    for one in outputs:
        yield from one if isinstance(one, (list, tuple)) else [one]
