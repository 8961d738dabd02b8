"""Swin by itself; what it shares with all others is in test_contract.py."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdge.models.architectures import Swin
from tests.small import SWIN as ARCH


def build(**kwargs):
    return Swin(**dict(dict(arch=ARCH, window_size=4), **kwargs))


@pytest.mark.parametrize(
    'arch, gflops', [('tiny', 4.49), ('small', 8.74), ('base', 15.4)]
)
def test_flops_are_the_papers(arch, gflops):
    """At 224 x 224, where no map is padded; the papers round to 4.5, 8.7."""
    with torch.device('meta'):
        model = Swin(arch)
    side = 56
    flops = model.patch_embed.flops((side, side))
    for layer in model.layers:
        for block in layer['blocks']:
            flops += block.flops((side, side), 0).at(side**2)
        if 'downsample' in layer:
            side //= 2
            flops += layer['downsample'].flops((side, side))
    assert flops / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_its_sizes_are_the_hosts():
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    for name, arch in backbones.SwinTransformer.arch_zoo.items():
        if name in Swin.arch_zoo:
            ours = {k: np.array(v) for k, v in Swin.arch_zoo[name].items()}
            assert all((ours[k] == arch[k]).all() for k in arch)


def mmsegs(**kwargs):
    from mmseg.models.backbones import SwinTransformer

    return SwinTransformer(**ARCH, window_size=4, **kwargs)


def mmpretrains(**kwargs):
    from mmpretrain.models.backbones import SwinTransformer

    kwargs = dict(out_indices=(0, 1, 2, 3), **kwargs)
    return SwinTransformer(ARCH, window_size=4, **kwargs)


@pytest.mark.parametrize(
    'host, kwargs, sizes',
    [
        (mmsegs, {}, [(64, 64), (100, 131), (130, 3)]),
        (
            mmpretrains,
            dict(pad_small_map=True),
            [(64, 64), (100, 131), (130, 3)],
        ),
        # It refuses maps smaller than a window.
        (mmpretrains, dict(pad_small_map=False), [(128, 128), (250, 128)]),
    ],
)
def test_the_hosts_own_weights_give_the_hosts_maps(host, kwargs, sizes):
    pytest.importorskip(host.__name__.removesuffix('s'))
    theirs, ours = host(**kwargs), build(**kwargs).eval()
    theirs.eval()  # returns None in the hosts
    for name, parameter in theirs.named_parameters():
        if 'norm' not in name:
            nn.init.normal_(parameter, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    for size in sizes:
        x = torch.rand(2, 3, *size)
        for a, b in zip(ours(x), theirs(x), strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(
                a, b, atol=1e-5 * scale, rtol=0, check_stride=False
            )


class TestOfficialWeights:
    @pytest.fixture(scope='class')
    def golden(self, test_data):
        """Of DSS, whose teacher is the plain Swin of the same weights."""
        arrays = np.load(test_data / 'golden' / 'dynamicswin.npz')
        return {
            key: torch.tensor(arrays[key])
            for key in arrays
            if key == 'x' or key.startswith(('w/', 'teacher/'))
        }

    @pytest.fixture(scope='class')
    def weights(self, golden):
        return {k[2:]: v for k, v in golden.items() if k.startswith('w/')}

    @staticmethod
    def build(**kwargs):
        arch = dict(embed_dims=8, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8))
        return Swin(arch, **kwargs)

    def test_official_outputs(self, golden, weights):
        model = self.build(pad_small_map=False, out_indices=-1).eval()
        model.load_state_dict(weights)
        (out,) = model(golden['x'])
        expected = golden['teacher/featmap'].mT.unflatten(2, (7, 7))
        torch.testing.assert_close(
            out, expected, atol=1e-5, rtol=0, check_stride=False
        )
        logits = out.mean((2, 3)) @ weights['head.weight'].T
        torch.testing.assert_close(
            logits + weights['head.bias'],
            golden['teacher/cls'],
            atol=1e-5,
            rtol=0,
        )

    def test_a_last_map_of_one_window_may_be_shifted(self, golden, weights):
        model = self.build(out_indices=-1).eval()
        model.load_state_dict(weights)
        (out,) = model(golden['x'])
        expected = golden['teacher/featmap'].mT.unflatten(2, (7, 7))
        assert (out - expected).abs().max() > 0.01

    def test_norms_of_inner_maps_start_anew(self, weights):
        model = self.build()
        nn.init.zeros_(model.norm1.weight)
        model.load_state_dict(weights)
        assert model.norm1.weight.eq(1).all()
        assert model.norm3.weight.equal(weights['norm.weight'])

    def test_later_stages_are_not_missed(self, weights):
        model = self.build(out_indices=(0, 1))
        model.load_state_dict(weights)
        assert len(model.layers) == 2 and 'downsample' not in model.layers[1]

    @pytest.mark.parametrize(
        'kwargs, message',
        [
            (dict(window_size=12), 'set window_size=7'),
            (
                dict(arch='tiny'),
                r'depths=\(2, 2, 6, 2\), embed_dims=8: set arch=dict',
            ),
        ],
    )
    def test_other_sizes_are_told(self, weights, kwargs, message):
        kwargs = dict(dict(arch=self.build().arch), **kwargs)
        with pytest.raises(ValueError, match=message):
            Swin(**kwargs).load_state_dict(weights)


@pytest.mark.parametrize('stages', [0, 1, 4])
def test_the_first_stages_are_frozen(stages):
    model = build(frozen_stages=stages)
    for name, parameter in model.named_parameters():
        part, number, *_ = name.split('.')
        stage = {'patch_embed': -1, 'layers': number}.get(part, part[-1])
        assert parameter.requires_grad == (int(stage) >= stages), name


def test_depths_of_parameters():
    """Down-sampling goes with the block before it, as in mmpretrain."""
    model = build()
    depths = {
        'patch_embed.norm.weight': 0,
        'layers.0.blocks.0.mlp.fc1.weight': 1,
        'layers.0.blocks.1.attn.relative_position_bias_table': 2,
        'layers.0.downsample.reduction.weight': 2,
        'layers.2.blocks.0.norm1.bias': 4,
        'norm0.weight': 7,
    }
    for name, depth in depths.items():
        found = model.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert found == (depth, 8), name
    assert model.get_layer_depth('head.fc.bias', 'backbone.') == (7, 8)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='huge'), "arch='huge' is unknown; allowed are 'tiny'"),
        (dict(arch=dict(ARCH, depths=(2, 2))), 'must give one positive'),
        (dict(arch=dict(ARCH, depths=(2, 0, 2, 2))), 'must give one positive'),
        (dict(arch=dict(ARCH, embed_dims=(8,))), 'must give one positive'),
        (dict(arch=dict(embed_dims=8)), 'arch must give'),
        (dict(arch=dict(ARCH, num_heads=(3, 2, 2, 4))), 'multiple of its num'),
        (dict(window_size=0), 'window_size must be an integer of at least 1'),
        (dict(window_size=(7, 7)), r'at least 1, but got \(7, 7\)'),
        (dict(frozen_stages=5), 'frozen_stages=5 must be an integer of'),
        (dict(out_indices=4), 'out_indices=4 must be ascending'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
