"""ViT by itself; what it shares with all others is in test_contract.py."""

import pytest
import torch
from torch import nn

from mmdge.models.architectures import ViT
from tests.small import DEIT, deit


def build(**kwargs):
    defaults = dict(arch=DEIT, patch_size=8, pretrain_img_size=64)
    return ViT(**{**defaults, **kwargs})


@pytest.mark.parametrize(
    'arch, gflops', [('tiny', 1.717), ('small', 6.163), ('base', 23.24)]
)
def test_flops_are_deits(arch, gflops):
    """At 256 x 256; the paper's formula counts norms and softmax, too."""
    model = ViT(arch, pretrain_img_size=256).eval()
    with torch.no_grad():
        model(torch.rand(1, 3, 256, 256))
    assert model.cost.dense.item() / 1e9 == pytest.approx(gflops, rel=0.02)


@pytest.mark.parametrize(
    'arch, millions',
    [
        ('dinov2-small', 22.06),
        ('dinov2-base', 86.58),
        ('dinov2-large', 304.4),
        ('dinov2-giant', 1136),
    ],
)
def test_parameters_are_dinov2s(arch, millions):
    """As its model card has them."""
    with torch.device('meta'):
        model = ViT(arch)
    num = sum(p.numel() for p in model.parameters())
    assert num / 1e6 == pytest.approx(millions, rel=5e-4)
    assert model.patch_size == 14 and model.pos_size == (37, 37)


def test_arguments_count_before_what_the_arch_has():
    with torch.device('meta'):
        model = ViT(
            'dinov2-small',
            patch_size=16,
            pretrain_img_size=224,
            layer_scale_init_value=0,
        )
    assert model.patch_size == 16 and model.pos_size == (14, 14)
    assert not any(name.endswith('gamma') for name in model.state_dict())


def test_all_outputs_are_normed_if_asked():
    raw = build(out_indices=(0, 1), final_norm=False).eval()
    model = build(out_indices=(0, 1), apply_layernorm=True).eval()
    model.load_state_dict(
        {**raw.state_dict(), **model.norm.state_dict(prefix='norm.')}
    )
    x = torch.rand(1, 3, 64, 64)
    for out, plain in zip(model(x), raw(x), strict=True):
        normed = model.norm(plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(out, normed)


def test_static_it_is_the_dense_twin_of_a_dynamic_one():
    twin, static = deit('finest').eval(), build().eval()
    static.load_state_dict(twin.state_dict())
    x = torch.rand(2, 3, 100, 76)
    assert static(x)[0].equal(twin(x)[0])
    assert static.cost.dynamic.equal(twin.cost.dense)
    assert not static.cost.maps and not list(static.routers)


@pytest.mark.parametrize('patch_size', [7, 16])
def test_position_embeddings_are_resized(patch_size):
    kwargs = dict(patch_size=patch_size, distilled=True)
    size = (8 * patch_size, 5 * patch_size)
    big = build(pretrain_img_size=16 * patch_size, **kwargs)
    small = build(pretrain_img_size=size, **kwargs)
    small.load_state_dict(big.state_dict())
    # At this size both use its grid: the big one resizes as it runs.
    x = torch.rand(1, 3, *size)
    torch.testing.assert_close(small.eval()(x), big.eval()(x))


def test_blocks_after_the_last_output_are_not_built():
    model = build(out_indices=(0, 1))
    assert len(model.blocks) == 2
    assert isinstance(model.norm, nn.Identity)


def test_without_final_norm():
    x = torch.rand(1, 3, 64, 64)
    model, raw = build().eval(), build(final_norm=False).eval()
    raw.load_state_dict(model.state_dict())
    (out,) = raw(x)
    normed = model.norm(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(x)[0], normed)


def test_the_mlp_is_as_wide_as_asked():
    # 56 * (488 / 56) is a little less than 488
    arch = dict(DEIT, embed_dims=56, num_heads=4, feedforward_channels=488)
    assert build(arch=arch).blocks[0].mlp.fc1.out_features == 488


def test_the_embeddings_and_first_blocks_are_frozen():
    model = build(frozen_stages=2, distilled=True, num_register_tokens=2)
    frozen = {
        '.'.join(name.split('.')[: 2 if name.startswith('blocks') else 1])
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    assert frozen == {
        *('cls_token', 'dist_token', 'register_tokens'),
        *('pos_embed', 'patch_embed'),
        *('blocks.0', 'blocks.1'),
    }


def test_depths_of_parameters():
    model = build()
    depths = {
        'pos_embed': 0,
        'cls_token': 0,
        'patch_embed.proj.bias': 0,
        'blocks.0.mlp.fc1.weight': 1,
        'blocks.2.norm1.bias': 3,
        'norm.weight': 4,
    }
    for name, depth in depths.items():
        found = model.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert found == (depth, 5), name
    assert model.get_layer_depth('head.fc.bias', 'backbone.') == (4, 5)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (
            dict(arch='xl'),
            "'xl' is unknown.*'tiny', 'small', .*'dinov2-giant'",
        ),
        (dict(arch=dict(embed_dims=48)), 'arch must give'),
        (dict(arch=dict(DEIT, num_heads=0)), 'one positive integer to each'),
        (dict(out_type='raw'), "'featmap' or 'cls_token'.*'raw'"),
        (dict(out_indices=3), 'out_indices=3.*0 to 2'),
        (dict(out_indices=(2, 1)), 'ascending'),
        (dict(out_indices=()), 'out_indices'),
        (dict(out_indices='x'), "out_indices='x'"),
        (dict(out_indices=1.5), 'out_indices=1.5'),
        (dict(frozen_stages=4), 'frozen_stages=4.*at most 3'),
        (dict(patch_size=0), 'patch_size.*0'),
        (dict(num_register_tokens=-1), 'num_register_tokens.*-1'),
        (dict(layer_scale_init_value=-1), 'layer_scale_init_value.*-1'),
        (dict(ffn_type='swiglu'), "ffn_type.*'swiglu_fused'.*'swiglu'"),
        (dict(pretrain_img_size=4), 'at least 8.*4'),
        (dict(pretrain_img_size=(64, 4)), r'at least 8.*\(64, 4\)'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
