"""PVTv2 and MiT by themselves; the rest is in test_contract.py."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.architectures import PVTv2
from mmdge.models.layers import transformer
from mmdge.models.layers.block import on_full_map
from mmdge.models.layers.transformer import ConvMLP
from mmdge.models.weights import from_ours
from mmdge.utils.counting import flop_counter
from tests.small import PVT_V2, pictures, pvt_v2, shaken
from tests.test_contract import give_weights, with_official_eps
from tests.test_models.test_architectures.test_pvt import build as pvt


def build(**kwargs):
    return shaken(PVTv2(**dict(arch=PVT_V2) | kwargs)).eval()


@pytest.mark.parametrize(
    'arch, gflops, params',
    [
        ('b0', 0.566, 3.41),
        ('b1', 2.11, 13.5),
        ('b2', 4.03, 24.8),
        ('b2-linear', 3.89, 22.0),
        ('b3', 6.90, 44.7),
        ('b4', 10.1, 62.0),
        ('b5', 11.7, 81.4),
        ('mit-b0', 0.452, 3.32),
        ('mit-b2', 3.27, 24.2),
        ('mit-b5', 11.7, 81.4),
    ],
)
def test_flops_and_parameters_are_the_papers(arch, gflops, params):
    """At 224 x 224, both attention products counted, without a head."""
    with torch.device('meta'):
        model = PVTv2(arch)
    flops = 0
    for i, (blocks, stride) in enumerate(
        zip(model.stages, model.strides, strict=True), start=1
    ):
        side = 224 // stride
        flops += getattr(model, f'patch_embed{i}').flops((side, side))
        for block in blocks:
            flops += block.flops((side, side), 0).at(side**2)
    assert flops / 1e9 == pytest.approx(gflops, rel=5e-3)
    num = sum(p.numel() for p in model.parameters())
    assert num / 1e6 == pytest.approx(params, rel=5e-3)


@pytest.mark.parametrize('depths', [(1, 1, 1, 1), (2, 1, 3, 1), (1, 2, 1, 2)])
def test_it_is_mmsegs_mit(depths):
    from mmseg.models.backbones import MixVisionTransformer

    heads = (1, 2, 5, 8)
    model = build(
        arch=dict(
            embed_dims=[8 * n for n in heads],
            num_layers=depths,
            num_heads=heads,
            mlp_ratios=(4, 4, 4, 4),
        )
    )
    host = MixVisionTransformer(
        embed_dims=8, num_layers=depths, num_heads=heads
    )
    give_weights(with_official_eps(host), model, 'mmdet')
    names = from_ours(model.state_dict(), model.layouts[1])[0].keys()
    assert names == host.state_dict().keys()
    for size in [(64, 64), (100, 75)]:
        x = torch.rand(1, 3, *size)
        for a, b in zip(model(x), host(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('cache', [1, 1_000, 4_000])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 5)])
def test_a_map_in_bands_is_the_map(size, cache, monkeypatch):
    mlp = ConvMLP(4, 16)
    rows = torch.randn(3 * size[0] * size[1], 4)
    expected = mlp(rows, partial(on_full_map, size=size))
    monkeypatch.setattr(transformer, 'CACHE_BYTES', cache)
    with torch.no_grad():
        found = mlp(rows, partial(on_full_map, size=size))
    torch.testing.assert_close(found, expected)


def test_maps_in_bands_cost_what_maps_do(monkeypatch):
    monkeypatch.setattr(transformer, 'CACHE_BYTES', 10_000)
    model, x = pvt_v2('variance').eval(), pictures(2, 100, 76)
    for dense in (True, False):
        model.dense = dense
        with torch.no_grad(), flop_counter() as counter:
            model(x)
        found = counter.get_total_flops() / 2
        assert found == model.cost.dynamic.sum()


def test_linear_attention_sees_49_keys():
    """As PVTv2's authors have it: pool, project, norm, GELU; ReLU below."""
    block = build(arch=dict(PVT_V2, linear=True)).block2[0]
    tokens = torch.randn(1, 9 * 11, 16)
    context = block.prepare(tokens, (9, 11)).context
    image = block.norm1(tokens).transpose(1, 2).view(1, 16, 9, 11)
    pooled = F.adaptive_avg_pool2d(image, 7).flatten(2)
    sr = block.attn.sr
    keys = pooled.transpose(1, 2) @ sr.weight.flatten(1).T + sr.bias
    keys = block.attn.kv(F.gelu(block.attn.norm(keys)))[0]
    found = torch.cat([context.keys, context.values], 1).view(49, 32)
    torch.testing.assert_close(found, keys)
    rows = torch.randn(99, 16)
    hidden = F.relu(block.mlp.fc1(rows)).T.view(1, -1, 9, 11)
    hidden = F.gelu(block.mlp.dwconv.dwconv(hidden)).flatten(2)[0].T
    torch.testing.assert_close(
        block.mlp(rows, partial(on_full_map, size=(9, 11))),
        block.mlp.fc2(hidden),
    )


@pytest.mark.parametrize('stages', [1, 4])
def test_the_first_stages_are_frozen(stages):
    for name, parameter in build(frozen_stages=stages).named_parameters():
        stage = int(name.partition('.')[0][-1])
        assert parameter.requires_grad == (stage > stages), name


def test_depths_of_parameters():
    """A stage's norm goes with its last block."""
    model = build()
    depths = {
        'patch_embed1.norm.weight': 0,
        'block1.0.mlp.dwconv.dwconv.weight': 1,
        'norm1.weight': 1,
        'patch_embed2.proj.weight': 2,
        'norm2.bias': 3,
        'norm4.weight': 5,
    }
    for name, depth in depths.items():
        assert model.get_layer_depth(name) == (depth, 7), name


@pytest.mark.parametrize(
    'here, there, message',
    [
        (build, pvt, r'holds a PVT \(official layout\), but .* PVTv2;'),
        (pvt, build, r'holds a PVTv2 \(official layout\), but .* PVT;'),
        (
            build,
            lambda: build(arch=dict(PVT_V2, mlp_ratios=(4, 4, 4, 4))),
            r'mlp_ratios=\(4, 4, 4, 4\)',
        ),
        (
            build,
            lambda: build(arch=dict(PVT_V2, linear=True)),
            'linear=True',
        ),
        (
            lambda: PVTv2('b0'),
            lambda: PVTv2('mit-b0'),
            "set arch='mit-b0'",
        ),
    ],
)
def test_other_weights_are_refused(here, there, message):
    with pytest.raises(ValueError, match=message):
        here().load_state_dict(there().state_dict())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="arch='b6' is unknown; .*'mit-b5'"):
        PVTv2('b6')
    with pytest.raises(ValueError, match='must give 4 values'):
        PVTv2(dict(num_layers=(1, 2)))
    with pytest.raises(ValueError, match="linear must be a bool, .* 'yes'"):
        PVTv2(dict(num_layers=(1, 1, 1, 1), linear='yes'))
