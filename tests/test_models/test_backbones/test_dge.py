"""DGE-PVT and DGE-DeiT, against the official code; their arguments."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdge.models import DGEPVT, DGEDeiT
from mmdge.utils.counting import flop_counter
from tests.small import DEIT, PVT, deit, pictures, pvt

QUIET = dict(type='GumbelRouter', noise=False)
PVT_ARCH = dict(
    embed_dims=(16, 32, 40, 64),
    num_layers=(1, 2, 1, 1),
    num_heads=(1, 2, 5, 8),
)
DEIT_ARCH = dict(
    embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192
)
# Of each golden file: whose outputs, what they are called, the extra tokens
# of each block, and what float32 leaves of the official gradients: in stage
# 3's router they are 1e-6 at most and accurate to some 2e-9 (float64 shows).
OFFICIAL = {
    'dge_pvt_dense_maps': (
        DGEPVT,
        dict(arch=PVT_ARCH, with_cls_token=True),
        ['res2', 'res3', 'res4', 'res5'],
        [0, 0, 0, 0, 1],
        4e-9,
    ),
    'dge_deit_cls': (
        DGEDeiT,
        dict(arch=DEIT_ARCH, out_type='cls_token'),
        ['logits'],
        [1, 1, 1],
        0,
    ),
}


@pytest.mark.parametrize('file', OFFICIAL)
class TestAgainstTheOfficialCode:
    @pytest.fixture
    def golden(self, test_data, file):
        arrays = np.load(test_data / 'golden' / f'{file}.npz')
        return {key: torch.tensor(array) for key, array in arrays.items()}

    @pytest.fixture
    def official(self, golden, file):
        """The backbone, and what makes the file's outputs of its own."""
        family, kwargs, *_ = OFFICIAL[file]
        kwargs = dict(kwargs, pretrain_img_size=128, drop_path_rate=0.0)
        model = family(routing=QUIET, **kwargs)
        state = {k[3:]: v for k, v in golden.items() if k.startswith('sd.')}
        model.load_state_dict(state)
        head = nn.Identity()
        if 'head.weight' in state:
            head = nn.Linear(*state['head.weight'].T.shape)
            names = ('weight', 'bias')
            head.load_state_dict({k: state[f'head.{k}'] for k in names})
        return model, head

    @pytest.mark.parametrize('mode', ['eval', 'train'])
    def test_outputs(self, official, golden, file, mode):
        model, head = official
        outs = model.train(mode == 'train')(golden['x'])
        for out, name in zip(outs, OFFICIAL[file][2], strict=True):
            expected = golden[f'{mode}.{name}']
            torch.testing.assert_close(head(out), expected, atol=1e-5, rtol=0)

    def test_query_counts(self, official, golden, file):
        model, _ = official
        model.eval()(golden['x'])
        strides = [
            stride
            for stride, blocks in zip(model.strides, model.stages, strict=True)
            for _ in blocks
        ]
        counts = [
            found.share.flatten(1).sum(1) * (found.cell // stride) ** 2 + extra
            for found, stride, extra in zip(
                model.cost.maps, strides, OFFICIAL[file][3], strict=True
            )
        ]
        expected = golden['eval.num_queries'].double()
        assert torch.stack(counts, 1).equal(expected)

    def test_task_gradients(self, official, golden, file):
        model, head = official
        _, _, names, _, floor = OFFICIAL[file]
        loss = sum(
            (golden[f'train.probe.{name}'] * head(out)).mean()
            for name, out in zip(names, model(golden['x']), strict=True)
        )
        expected = golden['train.task_loss'].float()
        torch.testing.assert_close(loss.detach(), expected)
        loss.backward()
        named = [
            *model.named_parameters(),
            *((f'head.{k}', p) for k, p in head.named_parameters()),
        ]
        for name, parameter in named:
            key = 'grad_task.' + name.replace('.router.', '.dge.router.')
            expected = golden[key]
            torch.testing.assert_close(
                parameter.grad,
                expected,
                rtol=0,
                atol=max(1e-4 * expected.abs().max().item(), floor),
                msg=lambda text, name=name: f'{name}: {text}',
            )


@pytest.mark.parametrize('arch', ['tiny', 'small', 'medium', 'large'])
@pytest.mark.parametrize('routing', ['learned', 'variance'])
def test_formula_equals_counter_at_full_width(arch, routing):
    model, x = DGEPVT(arch, routing=routing).eval(), pictures(2, 64, 100)
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    assert counter.get_total_flops() / 2 == model.cost.dynamic.sum()


def test_extra_tokens_are_never_pooled():
    """With all regions coarsest there is a query for each of them."""
    coarsest = dict(type='UniformRouter', share=(0, 0, 1))
    model = deit(coarsest, distilled=True).eval()
    model(torch.rand(1, 3, 64, 64))
    # 4 regions and 2 extra tokens as queries, 66 keys, 3 blocks
    dim, queries, keys = 24, 4 + 2, 64 + 2
    per_query = 2 * dim**2 + 2 * keys * dim + 2 * dim * 48
    block = 2 * keys * dim**2 + queries * per_query
    embed = 64 * 3 * 8 * 8 * dim
    assert model.cost.dynamic.item() == 3 * block + embed


def test_a_static_checkpoint_becomes_dynamic():
    static, dynamic = pvt('finest').eval(), pvt('variance').eval()
    dynamic.load_state_dict(static.state_dict())
    dynamic(torch.rand(2, 3, 128, 128))
    assert 0.3 < dynamic.cost.ratio.mean() < 0.7


@pytest.mark.parametrize('build, stages', [(pvt, 4), (deit, 3)])
def test_frozen_to_the_end_nothing_is_trained(build, stages):
    model = build('learned', frozen_stages=stages)
    assert not any(p.requires_grad for p in model.parameters())


class TestArguments:
    def test_one_set_and_one_routing_per_stage(self):
        model = pvt(
            ['variance', 'variance', 'random', 'finest'],
            granularities=[(1, 2, 4), (1, 2, 4), (1, 2), (1,)],
            out_indices=(1, 3),
        ).eval()
        maps = model(torch.rand(1, 3, 128, 128))
        assert [m.shape[1] for m in maps] == [16, 32]
        assert [m.cell for m in model.cost.maps] == [16, 32, 32, 32]

    def test_numpy_integers_are_integers(self):
        model = pvt(granularities=tuple(np.array([1, 2, 4])))
        assert model.granularities == [(1, 2, 4)] * 4

    @pytest.mark.parametrize(
        'kwargs, message',
        [
            (dict(granularities=(1, 2, 3)), 'must be positive and ascending'),
            (dict(granularities=(4, 2, 1)), 'must be positive and ascending'),
            (dict(granularities=[(1, 2)] * 3), 'or 4, one per stage'),
            (dict(granularities=()), 'must be positive and ascending'),
            (dict(granularities=4), 'must be positive and ascending'),
            (dict(granularities=(1, 2.0)), 'must be positive and ascending'),
            (dict(granularities=(True, 2)), 'must be positive and ascending'),
            (
                dict(granularities=[(1, 2), (), (1,), (1,)]),
                'must be positive and ascending',
            ),
            (dict(routing=['variance'] * 3), 'or 4, one per stage'),
            (dict(routing='best'), "routing='best' is unknown"),
            (dict(blocks_per_decision=0), "at least 1, or 'stage', but got 0"),
            (dict(price='0.1x'), "price must be a number, but got '0.1x'"),
            (
                dict(routing=dict(type='QuantileRouter', price=0.5)),
                'give it to the backbone',
            ),
        ],
    )
    def test_mistakes_are_named(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            DGEPVT(arch=PVT, **kwargs)

    def test_mistakes_are_named_of_a_single_stage_too(self):
        with pytest.raises(ValueError, match='each dividing the last'):
            DGEDeiT(arch=DEIT, granularities=(1, 2, 3))
