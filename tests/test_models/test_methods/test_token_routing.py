"""Token routing by itself; the rest is in test_contract.py."""

import math

import pytest
import torch
from torch import nn

from mmdge.models import TokenRoutingPVT
from mmdge.models.architectures import PVTv2
from mmdge.models.routing import AveragedGate
from mmdge.models.weights import from_ours
from mmdge.utils.counting import flop_counter
from tests.small import (
    PVT_V2,
    pictures,
    pvt,
    pvt_v2,
    shaken,
    token_routing,
)

QUIET = dict(type='AveragedGate', noise=False)
# Computed, by row and column, of images of ImageNet; the paper's figure 4.
FIGURE_4 = [
    (0.72, 0.13, 0, 0),
    (0.43, 0.38, 0.12, 0),
    (0, 0.68, 0.30, 0.08),
    (0, 0, 0.46, 0.42),
]


def build(**kwargs):
    """As it starts, but with blocks that do something."""
    model = token_routing(**kwargs)
    for router in model.routers:
        router.reset_parameters()
    return model.eval()


def count(model, x):
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    return counter.get_total_flops() / 2


def test_it_starts_as_the_static_one():
    model, x = build(), torch.rand(2, 3, 100, 76)  # no padding
    outs, cost = model(x), model.cost
    with model.as_dense_twin():
        for a, b in zip(outs, model(x), strict=True):
            torch.testing.assert_close(a, b)
    for found in cost.maps:
        part, column = found.name.split('.')
        on_diagonal = part == f'block{int(column) + 1}'
        assert found.share.eq(on_diagonal).all(), found.name
    # Gates of nodes that an image has come to; no path on the diagonal has.
    sizes = [(25, 19), (13, 10), (7, 5), (4, 3)]
    gates = sum(
        2 * dims * (math.prod(size) * (4 - i) + (4 - i) * (i < 3))
        for i, (dims, size) in enumerate(
            zip(PVT_V2['embed_dims'], sizes, strict=True)
        )
    )
    assert (cost.dynamic - cost.dense).eq(gates).all()


def test_open_as_in_the_paper():
    model, x = build(gate_init='open'), pictures(2, 64, 96)
    model(x)
    for found in model.cost.maps:  # but for padding
        assert found.share.equal(found.valid.to(found.share))
    assert model.cost.ratio[0] > 3  # without padding
    assert count(model, x) == model.cost.dynamic.sum()


def test_closed_as_far_as_can_be():
    model = build()
    for size in [(64, 64), (100, 77)]:
        for router in model.routers:
            router.price = 1e3
        model(pictures(1, *size))
        least = model.cost.ratio.item()
        assert model.least_ratio(size) == pytest.approx(least, rel=1e-12)
        assert 0 < least < 1
    twin = TokenRoutingPVT(PVT_V2 | dict(linear=False), routing='finest')
    assert twin.least_ratio((64, 64)) == 0


def test_images_go_different_ways():
    """That the contract's batches hold such, which equal them alone."""
    model = token_routing().eval()
    model(pictures(7, 100, 76))
    paths = [m for m in model.cost.maps if m.name.startswith('patch_embed')]
    assert any(0 < path.share.mean() < 1 for path in paths)
    cells = [m for m in model.cost.maps if m.name.startswith('block')]
    left_out = [cell.share.flatten(1).any(1) for cell in cells]
    assert any(0 < some.float().mean() < 1 for some in left_out)


def test_the_budget_teaches_gates_as_if_tokens_paid_for_all_of_a_cell():
    model = token_routing(routing=QUIET, out_indices=0)
    model(pictures(3, 64, 64))
    *_, found = model.cost.maps  # no gate depends on this one
    assert 0 < found.share.mean() < 1
    (gradient,) = torch.autograd.grad(model.cost.dynamic.sum(), found.share)
    slope = model.block1[3].flops((16, 16)).at(256) / 256
    expected = torch.full_like(gradient, slope)
    torch.testing.assert_close(gradient, expected)


def test_the_task_teaches_gates_by_what_was_computed():
    model = token_routing(routing=QUIET, out_indices=0)
    (out,) = model(pictures(2, 64, 64))
    loss = (out * torch.randn_like(out)).sum()
    for found in model.cost.maps:
        (gradient,) = torch.autograd.grad(loss, found.share, retain_graph=True)
        assert 0 < found.share.mean() < 1
        assert gradient.ne(0).equal(found.share > 0)


def test_tokens_that_skip_all_cells_are_left_as_they_are():
    model, x = token_routing(out_indices=0).eval(), pictures(2, 64, 64)
    (out,) = model(x)
    tokens, size = model.patch_embed1(x)
    stem = model.norm1(tokens).unflatten(1, size)
    skips = sum(found.share for found in model.cost.maps) == 0
    assert 0 < skips.float().mean() < 1
    torch.testing.assert_close(out.permute(0, 2, 3, 1)[skips], stem[skips])


@pytest.mark.parametrize('arch, gflops', [('b1', 2.0), ('b2', 3.8)])
def test_the_papers_flops(arch, gflops):
    """It counts a cell's by the share of its open tokens, keys and all."""
    with torch.device('meta'):
        model = TokenRoutingPVT(arch)
    total = 0
    for i, size in enumerate(model._sizes((224, 224))):
        total += model.embedding(i).flops(size)
        for cell, share in zip(
            getattr(model, f'block{i + 1}'), FIGURE_4[i], strict=True
        ):
            total += share * cell.flops(size).at(math.prod(size))
    assert total / 1e9 == pytest.approx(gflops, rel=0.02)


def test_with_linear_attention():
    model, x = token_routing(linear=True).eval(), pictures(3, 100, 76)
    assert count(model, x) == model.cost.dynamic.sum()


@pytest.mark.parametrize('share', [0.3, 1.0])
def test_shares_of_controls(share):
    routing = dict(type='RandomRouter', share=(share, 1 - share))
    model = token_routing(routing=routing).eval()
    model(torch.rand(2, 3, 64, 64))
    shares = [
        m.mean.mean() for m in model.cost.maps if m.name.startswith('block1')
    ]
    assert torch.stack(shares).mean() == pytest.approx(share, abs=0.05)


class TestAverage:
    @pytest.fixture
    def gate(self):
        return AveragedGate(3, (1.0, 0.0), 1, noise=False, momentum=0.9)

    @staticmethod
    def step(gate, value):
        nn.init.constant_(gate.gate.weight[0], value)
        gate.remember()

    def test_each_step_moves_all_also_where_no_image_came(self):
        model = token_routing().train()
        for router in model.routers:
            nn.init.constant_(router.gate.bias[0], -1e3)  # all is closed
        model(torch.rand(2, 3, 64, 64))
        assert all(router.num_updates == 1 for router in model.routers)
        model.eval()(torch.rand(2, 3, 64, 64))
        assert all(router.num_updates == 1 for router in model.routers)

    def test_it_can_decide_on_regions(self):
        model = pvt(routing=dict(type='AveragedGate'), granularities=(1, 4))
        model.eval()(pictures(2, 64, 64))
        assert model.cost.maps[0].share.shape == (2, 4, 4)

    def test_the_first_step_is_the_weights(self, gate):
        gate.eval()
        self.step(gate, 5.0)
        assert gate.average[0, :3].eq(5).all()

    def test_later_ones_move_it(self, gate):
        for value in (1.0, 2.0, 4.0):
            self.step(gate, value)
        expected = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4
        assert gate.average[0, 0].item() == pytest.approx(expected)
        x = torch.ones(1, 1, 1, 3)
        valid = x[..., 0] > 0
        logits = gate.eval().logits(x, valid)[0, 0, 0, 0]
        bias = gate.gate.bias[0]
        torch.testing.assert_close(logits, 3 * expected + bias)
        gate.reset_parameters()
        assert gate.logits(x, valid)[0, 0, 0, 0] == gate.gate.bias[0]

    def test_untrained_it_is_the_weights_also_after_loading(self, gate):
        other = AveragedGate(3, (1.0, 0.0), 1)
        nn.init.constant_(other.gate.weight[0], 5.0)
        gate.load_state_dict(other.state_dict())
        x = torch.ones(1, 1, 1, 3)
        logits = gate.eval().logits(x, x[..., 0] > 0)
        expected = 15 + gate.gate.bias[0]
        torch.testing.assert_close(logits[0, 0, 0, 0], expected)


class TestWeights:
    def test_a_static_one_goes_to_all_columns(self):
        static = shaken(PVTv2(PVT_V2 | dict(linear=False))).eval()
        state = static.state_dict()
        (mmdet,) = (la for la in PVTv2.layouts if la.name == 'mmdet')
        x = torch.rand(2, 3, 64, 64)  # no padding
        for given in (state, from_ours(state, mmdet)[0]):
            model = build()
            model.load_state_dict(given)
            for a, b in zip(model(x), static(x), strict=True):
                torch.testing.assert_close(a, b)
            for j in range(4):
                kept = model.block2[j].blocks[1].norm1.weight
                assert kept.equal(state['block2.1.norm1.weight'])
            for path in model.patch_embed3:
                assert path.proj.bias.equal(state['patch_embed3.proj.bias'])

    def test_columns_are_no_copies_at_first(self):
        first, second = TokenRoutingPVT('b0').block1[:2]
        weights = [cell.blocks[0].attn.q.weight for cell in (first, second)]
        assert not weights[0].equal(weights[1])

    def test_the_twin_takes_the_diagonal(self):
        model, x = token_routing().eval(), pictures(1, 64, 64)
        twin = token_routing(routing='finest').eval()
        twin.load_state_dict(model.state_dict())
        with model.as_dense_twin():
            for a, b in zip(model(x), twin(x), strict=True):
                torch.testing.assert_close(a, b)
        assert twin.state_dict().keys() == pvt_v2('finest').state_dict().keys()

    def test_routers_of_another_method_are_left_out(self):
        build().load_state_dict(pvt_v2().state_dict())

    @pytest.mark.parametrize(
        'here, there, message',
        [
            (
                lambda: PVTv2('b0'),
                token_routing,
                "set type='mmdge.TokenRoutingPVT'",
            ),
            (
                lambda: TokenRoutingPVT('b0'),
                lambda: TokenRoutingPVT('mit-b0'),
                "set arch='mit-b0'",
            ),
            (
                lambda: TokenRoutingPVT('b0'),
                lambda: PVTv2('mit-b0'),
                "set arch='mit-b0'",
            ),
        ],
    )
    def test_others_are_refused(self, here, there, message):
        with pytest.raises(ValueError, match=message):
            here().load_state_dict(there().state_dict())


def test_depths_of_parameters():
    """All columns of a row learn alike."""
    model = token_routing()
    for name, depth in {
        'patch_embed1.norm.weight': 0,
        'block1.3.router.gate.weight': 1,
        'block2.0.1.norm1.weight': 3,
        'block2.3.1.norm1.weight': 3,
        'patch_embed2.4.proj.weight': 2,
        'patch_embed2.0.router.gate.bias': 2,
        'norm4.weight': 5,
    }.items():
        assert model.get_layer_depth(f'a.{name}', 'a.') == (depth, 7), name


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(gate_init='shut'), "'diagonal' or 'open', but got 'shut'"),
        (dict(routing='variance'), "routing='variance' must be 'learned'"),
        (dict(routing='error'), "routing='error' must be 'learned'"),
        (dict(routing='best'), "routing='best' is unknown"),
        (
            dict(routing=dict(type='AveragedGate', momentum=1)),
            r'momentum must be in \[0, 1\), but got 1',
        ),
        (
            dict(routing=dict(type='RandomRouter', share=(0.3, 0.3, 0.4))),
            'to each of the 2 candidates',
        ),
        (dict(price='low'), "price must be a number, but got 'low'"),
        (dict(arch='b9'), "arch='b9' is unknown"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TokenRoutingPVT(**dict(arch='b0') | kwargs)
