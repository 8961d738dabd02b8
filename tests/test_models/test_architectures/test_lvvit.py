"""LV-ViT by itself; the official code's figures are in ``test_pruning.py``."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models import DGEViT, DynamicLVViT
from mmdge.models.architectures import LVViT
from mmdge.models.weights import from_ours
from mmdge.utils.counting import flop_counter
from tests.small import DEIT


def build(family=LVViT, **kwargs):
    defaults = dict(
        arch=DEIT, patch_size=8, pretrain_img_size=64, drop_path_rate=0.0
    )
    return family(**{**defaults, **kwargs})


def test_sizes_are_the_official_ones():
    """The small one's with both classifiers: 26.15 M, 6.55 GFLOPs."""
    with torch.device('meta'):
        model = LVViT()
        num = sum(p.numel() for p in model.parameters())
        with flop_counter() as counter:
            model(torch.rand(1, 3, 224, 224))
    assert (num + 2 * 385 * 1000) / 1e6 == pytest.approx(26.15, abs=5e-3)
    flops = counter.get_total_flops() / 2 + 197 * 384 * 1000
    assert flops / 1e9 == pytest.approx(6.552, abs=1e-3)


@pytest.mark.parametrize('size', [(61, 90), (3, 1)])
def test_borders_are_completed_with_zeros(size):
    model, x = build().eval(), torch.rand(2, 3, *size)
    whole = F.pad(x, (0, -size[1] % 8, 0, -size[0] % 8))
    assert model(x)[0].equal(model(whole)[0])


@pytest.mark.parametrize(
    'kwargs, moves',
    [
        ({}, True),
        (dict(norm_eval=True), False),
        (dict(frozen_stages=1), False),
    ],
)
def test_what_batchnorm_remembers(kwargs, moves):
    model = build(**kwargs).train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    (out,) = model(torch.rand(2, 3, 64, 64))
    changed = [not b.equal(before[name]) for name, b in model.named_buffers()]
    assert len(changed) == 9 and set(changed) == {moves}
    out.mean().backward()
    trained = model.patch_embed.bn1.weight.grad is not None
    assert trained == ('frozen_stages' not in kwargs)


@pytest.mark.parametrize(
    'arch, expected',
    [
        ('small', [4, 8, 12]),
        ('medium', [5, 10, 15]),
        (dict(DEIT, num_layers=4), [1, 2, 3]),
    ],
)
def test_predictors_come_after_each_quarter(arch, expected):
    with torch.device('meta'):
        assert list(DynamicLVViT(arch).keep_ratios) == expected


class TestWeights:
    @pytest.fixture
    def state(self):
        """As the official file has them, flat."""
        heads = {
            f'{n}.weight': torch.rand(2, 24) for n in ('head', 'aux_head')
        }
        model = build()
        (official,) = [la for la in model.layouts if la.name == 'official']
        state, dropped = from_ours(model.state_dict(), official)
        assert not dropped and 'blocks.0.attn.qkv.bias' not in state
        assert state['blocks.0.attn.qkv.weight'].shape == (72, 24)
        return state | heads

    def test_they_load_into_a_dynamic_one_of_another_size(self, state):
        model = build(DynamicLVViT, pretrain_img_size=(64, 96))
        model.load_state_dict(state)  # strict
        assert model.blocks[1].attn.q.weight.equal(
            state['blocks.1.attn.qkv.weight'][:24]
        )
        assert 'blocks.1.attn.q.bias' not in model.state_dict()

    @pytest.mark.parametrize(
        'family, kwargs, said',
        [
            (DynamicLVViT, dict(patch_size=16), 'set patch_size=8$'),
            (DynamicLVViT, dict(arch='small'), r'embed_dims=24: set arch'),
            (DGEViT, {}, 'another kind of transformer'),
        ],
    )
    def test_others_refuse_them(self, state, family, kwargs, said):
        with pytest.raises(ValueError, match=said):
            build(family, **kwargs).load_state_dict(state)

    def test_a_vits_are_refused(self):
        state = build(DGEViT, routing='finest').state_dict()
        with pytest.raises(ValueError, match='holds a ViT .* is LVViT'):
            build().load_state_dict(state)


@pytest.mark.parametrize(
    'kwargs, said',
    [
        (dict(patch_size=7), 'patch_size must be even.*7'),
        (
            dict(arch='tiny'),
            "'tiny' is unknown; allowed are 'small', 'medium'",
        ),
    ],
)
def test_mistakes_are_named(kwargs, said):
    for family in (LVViT, DynamicLVViT):
        with pytest.raises(ValueError, match=said):
            build(family, **kwargs)
