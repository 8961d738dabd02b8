"""ConvNeXt by itself; what it shares with others is in test_contract.py."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdge.models.architectures import ConvNeXt
from mmdge.models.weights import from_ours
from tests.small import CONVNEXT as ARCH


def build(**kwargs):
    return ConvNeXt(**{'arch': ARCH, **kwargs})


def mmpretrains(arch=ARCH, **kwargs):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    return backbones.ConvNeXt(
        arch,
        out_indices=[0, 1, 2, 3],
        gap_before_final_norm=False,
        **kwargs,
    )


class TestOfficial:
    @pytest.fixture
    def golden(self, test_data):
        return np.load(test_data / 'golden' / 'dynamicconvnext.npz')

    @pytest.fixture
    def weights(self, golden):
        return {
            key.removeprefix('w/'): torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('w/')
        }

    @pytest.mark.parametrize('gap', [False, True])
    def test_the_teacher_of_the_dynamic_one(self, weights, golden, gap):
        arch = dict(depths=(2, 1, 6, 2), channels=(8, 16, 32, 64))
        model = ConvNeXt(arch, out_indices=3, gap_before_final_norm=gap)
        model.load_state_dict({'model': weights})  # strict
        with torch.no_grad():
            (out,) = model.eval()(torch.tensor(golden['x']))
        expected = torch.tensor(golden['teacher/featmap'])
        if gap:
            out = F.linear(out, weights['head.weight'], weights['head.bias'])
            expected = torch.tensor(golden['teacher/cls'])
        else:
            out = out.permute(0, 2, 3, 1)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        head = weights['head.weight'].numel()
        assert model.cost.dense.add(head).tolist() == [
            golden['eval/teacher_macs_per_image'],
        ] * len(out)


class TestWeights:
    @pytest.mark.parametrize(
        'arch, linear', [('tiny', True), ('small', True), ('base', False)]
    )
    def test_of_mmpretrain(self, arch, linear):
        """Whose MLP may be of 1 x 1 convolutions; a 16th as wide."""
        kinds = pytest.importorskip('mmpretrain.models.backbones')
        zoo = kinds.ConvNeXt.arch_settings[arch]
        assert {k: list(v) for k, v in ConvNeXt.arch_zoo[arch].items()} == zoo
        zoo = dict(zoo, channels=[dims // 16 for dims in zoo['channels']])
        host = mmpretrains(
            zoo, linear_pw_conv=linear, layer_scale_init_value=1.0
        )
        model = build(arch=zoo)
        model.load_state_dict(host.state_dict())  # strict
        host.eval()
        x = torch.rand(1, 3, 70, 52)
        with torch.no_grad():
            for a, b in zip(model.eval()(x), host(x), strict=True):
                torch.testing.assert_close(
                    a, b, atol=1e-5, rtol=0, check_stride=False
                )

    def test_a_classifier_has_one_norm_and_the_others_start_anew(self):
        source, model = build(), build()
        for norm in (source.norm3, model.norm0):
            torch.nn.init.normal_(norm.weight)
        theirs, dropped = from_ours(source.state_dict(), layout('official'))
        kinds = ('weight', 'bias')
        assert dropped == [f'norm{i}.{k}' for i in range(3) for k in kinds]
        assert 'norm.weight' in theirs and 'norm3.weight' not in theirs
        model.load_state_dict(theirs)  # strict
        assert model.norm3.weight.equal(source.norm3.weight)
        assert model.norm0.weight.eq(1).all()

    def test_what_no_output_needs_is_left(self):
        state = build().state_dict()
        model = build(out_indices=(0, 2))
        model.load_state_dict(state)  # strict
        assert len(model.stages) == len(model(torch.rand(1, 3, 64, 64))) + 1
        assert not hasattr(model, 'norm1')

    @pytest.mark.parametrize(
        'change, message',
        [
            (
                lambda state: {
                    k: v for k, v in state.items() if '.gamma' not in k
                },
                r'lacks 5 .* set layer_scale_init_value=0\.0$',
            ),
            (
                lambda state: state | {'stages.0.0.grn.gamma': torch.ones(8)},
                r'holds 1 unknown \(stages\.0\.0\.grn\.gamma\); it is another',
            ),
            (
                lambda _: ConvNeXt(dict(ARCH, depths=(1,) * 4)).state_dict(),
                r'its sizes are depths=\(1, 1, 1, 1\), channels=',
            ),
        ],
        ids=['no factors', 'V2', 'other depths'],
    )
    def test_others_are_refused_with_advice(self, change, message):
        with pytest.raises(ValueError, match=message):
            build().load_state_dict(change(build().state_dict()))


def layout(name):
    (found,) = (each for each in ConvNeXt.layouts if each.name == name)
    return found


@pytest.mark.parametrize(
    'arch, gflops',
    [('tiny', 4.457), ('base', 15.359), ('xlarge', 60.93)],
)
def test_flops_are_the_papers(arch, gflops):
    """At 224 x 224, as in mmpretrain's metafile, which adds norms and head."""
    with torch.device('meta'):
        model = ConvNeXt(arch, out_indices=3)
    flops, size = 0, 224
    for blocks, downsample in zip(
        model.stages, model.downsample_layers, strict=True
    ):
        size //= downsample.side
        tokens = size**2
        flops += tokens * downsample.flops_per_token
        flops += sum(b.flops((size,) * 2, 0).at(tokens) for b in blocks)
    assert flops / 1e9 == pytest.approx(gflops, rel=1e-3)


@pytest.mark.parametrize('stages', [1, 4])
def test_the_first_stages_are_frozen(stages):
    """As mmpretrain does it, whose norms are trained; but not to the end."""
    model, host = build(frozen_stages=stages), mmpretrains()
    host.frozen_stages = stages
    host._freeze_stages()
    trained = {n for n, p in host.named_parameters() if p.requires_grad}
    if stages == 4:
        trained = {n for n in trained if not n.startswith('norm')}
    ours = dict(model.named_parameters())
    theirs, _ = from_ours(ours, layout('mmpretrain'))
    assert {n for n, p in theirs.items() if p.requires_grad} == trained


@pytest.mark.parametrize('depth', [9, 10])
def test_depths_of_parameters_are_mmpretrains(depth):
    arch = dict(depths=(2, 1, depth, 2), channels=(4, 4, 4, 4))
    model, host = build(arch=arch), mmpretrains(arch)
    theirs, _ = from_ours(
        {n: n for n in model.state_dict()}, layout('mmpretrain')
    )
    for name, ours in theirs.items():
        assert model.get_layer_depth(f'backbone.{ours}', 'backbone.') == (
            host.get_layer_depth(f'backbone.{name}', 'backbone.')
        )
    last = model.get_layer_depth('head.fc.bias', 'backbone.')
    assert last == host.get_layer_depth('head.fc.bias', 'backbone.')


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='nano'), "arch='nano' is unknown; allowed are 'tiny'"),
        (dict(arch=dict(ARCH, depths=(1, 2))), 'must give 4 values'),
        (dict(frozen_stages=5), 'frozen_stages=5 must be an integer of'),
        (dict(out_indices=4), 'out_indices=4 must be ascending'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
