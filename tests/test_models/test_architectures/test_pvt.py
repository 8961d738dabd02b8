"""PVT by itself; what it shares with all others is in test_contract.py."""

import pytest
import torch

from mmdge.models.architectures import PVT
from tests.small import PVT as ARCH
from tests.small import pvt


def build(**kwargs):
    return PVT(**dict(dict(arch=ARCH, pretrain_img_size=64), **kwargs))


@pytest.mark.parametrize(
    'arch, gflops',
    [('tiny', 2.57), ('small', 5.06), ('medium', 8.81), ('large', 12.99)],
)
def test_flops_are_the_papers(arch, gflops):
    """At 256 x 256, both attention products counted, with a cls token.

    The figures are the papers' formulae with both products, norms and
    activations included, which is about 1 % more than we count.
    """
    model = PVT(arch, with_cls_token=True, pretrain_img_size=256).eval()
    with torch.no_grad():
        model(torch.rand(1, 3, 256, 256))
    assert model.cost.dense.item() / 1e9 == pytest.approx(gflops, rel=0.02)


def test_static_it_is_the_dense_twin_of_a_dynamic_one():
    twin, static = pvt('finest').eval(), build().eval()
    static.load_state_dict(twin.state_dict())
    x = torch.rand(2, 3, 100, 76)
    for a, b in zip(static(x), twin(x), strict=True):
        assert a.equal(b)
    assert static.cost.dynamic.equal(twin.cost.dense)
    assert not static.cost.maps and not list(static.routers)


def test_position_embeddings_are_resized():
    big = build(pretrain_img_size=128, with_cls_token=True).eval()
    small = build(pretrain_img_size=(64, 96)).eval()
    small.load_state_dict(big.state_dict())
    x = torch.rand(1, 3, 64, 96)
    # At this size both use its grid: the big one resizes as it runs. The cls
    # token only adds a key to stage 4.
    for a, b in list(zip(small(x), big(x), strict=True))[:3]:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_cls_token_output():
    model = build(with_cls_token=True, out_type='cls_token')
    (out,) = model(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 32)


def test_stages_are_counted_from_the_end_too():
    assert build(out_indices=-1).out_indices == (3,)
    assert build(out_indices=(0, -2)).out_indices == (0, 2)


def test_stages_after_the_last_output_are_not_built():
    model = build(out_indices=(0, 1))
    maps = model(torch.rand(1, 3, 64, 64))
    assert len(maps) == 2 and len(model.cost.stages) == 2
    assert not hasattr(model, 'block3')


@pytest.mark.parametrize('stages', [1, 2, 4])
def test_the_first_stages_are_frozen(stages):
    model = build(frozen_stages=stages, with_cls_token=True)
    for name, parameter in model.named_parameters():
        # The cls token enters with the last stage.
        stage = 4 if name == 'cls_token' else int(name.partition('.')[0][-1])
        assert parameter.requires_grad == (stage > stages), name


def test_depths_of_parameters():
    """Stages' embeddings go with their first block."""
    model = build(with_cls_token=True, out_type='cls_token')
    depths = {
        'pos_embed1': 0,
        'patch_embed1.proj.weight': 0,
        'block1.0.mlp.fc1.weight': 1,
        'patch_embed2.norm.bias': 2,
        'block2.1.attn.q.bias': 3,
        'pos_embed4': 5,
        'cls_token': 5,
        'norm.weight': 6,
    }
    for name, depth in depths.items():
        found = model.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert found == (depth, 7), name
    assert model.get_layer_depth('head.fc.bias', 'backbone.') == (6, 7)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='huge'), "arch='huge' is unknown; allowed are 'tiny'"),
        (dict(arch=dict(num_layers=(1, 2))), 'must give 4 values'),
        (dict(arch=dict(num_layers=2)), 'must give 4 values'),
        (dict(arch=dict(ARCH, depths=2)), 'arch must give'),
        (dict(arch=3), 'arch must be a name or a dict, not 3'),
        (dict(frozen_stages=5), 'frozen_stages=5 must be an integer of'),
        (dict(frozen_stages='1'), "frozen_stages='1' must be an integer"),
        (dict(pretrain_img_size=16), 'must be at least 32, but got 16'),
        (dict(pretrain_img_size=(64, 16)), r'at least 32, but got \(64, 16\)'),
        (dict(pretrain_img_size=(64, 64, 64)), r'\(height, width\)'),
        (dict(pretrain_img_size=(64.0, 64)), r'\(height, width\)'),
        (dict(out_indices=4), 'out_indices=4 must be ascending'),
        (dict(out_indices=()), 'ascending and among 0 to 3'),
        (dict(out_indices=(3, 1)), 'ascending and among'),
        (dict(out_indices=(0, 4)), 'among 0 to 3'),
        (dict(out_type='maps'), "but got 'maps'"),
        (dict(out_type='cls_token'), 'needs with_cls_token=True'),
        (dict(drop_path_rate=1.0), 'drop_prob must be in'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
