"""Routers by error: where is a query worth its FLOPs?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.models import DGEPVT, DGEDeiT
from mmdge.models.routing import (
    DGEBlock,
    ErrorRouter,
    build_router,
    candidates,
    query_counts,
    region_variance,
    update_errors,
)
from mmdge.utils import UserError
from mmdge.utils.counting import flop_counter

from .maps import textured

PVT = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 2, 1, 1), num_heads=(1, 2, 2, 4)
)
DEIT = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)


def pvt(routing='error', **kwargs):
    kwargs = dict(dict(drop_path_rate=0.0, pretrain_img_size=64), **kwargs)
    return calibrated(DGEPVT(PVT, routing=routing, **kwargs))


def deit(routing='error', **kwargs):
    kwargs = dict(dict(drop_path_rate=0.0, pretrain_img_size=128), **kwargs)
    return calibrated(DGEDeiT(DEIT, routing=routing, **kwargs))


def calibrated(model):
    """Blocks that do something, and routers no two of which are alike."""
    for name, parameter in model.named_parameters():
        if 'norm' not in name:
            parameter.data.mul_(4)
    for router in model.routers:
        if isinstance(router, ErrorRouter):
            calibrate(router)
    return model


def calibrate(router):
    with torch.no_grad():
        router.weight.copy_(4 * torch.rand(()))
        router.scale.mul_(0.5 + torch.rand(len(router.scale)))
        router.exponent.add_(torch.rand(len(router.exponent)) - 0.5)
    return router


@given(
    granularities=st.sampled_from([(1, 2, 4), (1, 4), (2, 4), (1, 2)]),
    price=st.floats(-0.9, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_it_spends_where_the_spared_error_is_worth_it(
    granularities, price, seed
):
    torch.manual_seed(seed)
    router = ErrorRouter(8, granularities, price=price).eval()
    calibrate(router)
    x = textured(2, size=20)[:, :18, :17]  # ragged
    variance = region_variance(x, granularities[-1]).flatten().tolist()
    choice = router(x).choice.flatten().tolist()
    for spread, chosen in zip(variance, choice, strict=True):
        objective = []
        for k, side in enumerate(granularities):
            error = router.scale[k] * spread ** router.exponent[k].item()
            cost = (granularities[0] / side) ** 2
            objective.append(router.weight * error + (1 + price) * cost)
        objective = [value.item() for value in objective]
        assert objective[chosen] == pytest.approx(min(objective), abs=1e-5)


@given(
    prices=st.lists(st.floats(-3, 30), min_size=2, max_size=5),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_a_higher_price_never_buys_a_query(prices, seed):
    torch.manual_seed(seed)
    router = calibrate(ErrorRouter(8, (1, 2, 4)).eval())
    x = textured(2)
    last = torch.zeros(2, 8, 8)
    for router.price in sorted(prices):
        choice = router(x).choice
        assert (choice >= last).all()
        last = choice


def test_the_finest_has_no_error():
    router = calibrate(ErrorRouter(8, (1, 2, 4)))
    errors = router.predict(textured())
    assert errors[..., 0].eq(0).all()
    assert errors[..., 1:].gt(0).all()


@pytest.mark.parametrize('granularities', [(1, 2, 4), (2, 4), (2, 4, 8)])
def test_uncalibrated_it_takes_the_tokens_to_be_independent(granularities):
    x = 3 * torch.randn(2, 64, 64, 8)
    predicted = ErrorRouter(8, granularities).predict(x).mean((0, 1, 2))
    rows = candidates(x.flatten(1, 2), (64, 64), granularities)
    true = update_errors(rows, (64, 64), granularities).mean((0, 1, 2))
    torch.testing.assert_close(predicted, true, rtol=0.1, atol=0)


def test_progress_goes_from_finest_to_its_own_choice():
    router = calibrate(ErrorRouter(8, (1, 2, 4)))
    x = textured()
    router.train_progress = 0.0
    assert router(x) is None
    costs = []
    for router.train_progress in (0.01, 0.3, 0.7, 1.0):
        costs.append(router.cost[router(x).choice].mean().item())
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    own = router(x).choice
    router.train_progress = 0.0
    assert router.eval()(x).choice.equal(own)
    without_tokens = ErrorRouter(8, (2, 4))
    without_tokens.train_progress = 0.0
    assert (without_tokens(x).choice == 0).all()


def test_padding_gets_the_coarsest():
    router = calibrate(ErrorRouter(8, (1, 2, 4)).eval())
    router.weight.fill_(1e6)
    x, content = (
        torch.randn(4, 32, 32, 8),
        torch.ones(4, 8, 8, dtype=torch.bool),
    )
    assert (router(x, content).choice == 0).all()
    content[:, 5:] = False
    choice = router(x, content).choice
    assert (choice[:, 5:] == 2).all() and (choice[:, :5] == 0).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_decides_as_float32_does(dtype):
    router = calibrate(ErrorRouter(8, (1, 2, 4)).eval())
    x = (30 * textured(8)).to(dtype)
    expected = router(x.float()).choice
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert router(x).choice.equal(expected)
    # The calibration itself is rounded, so a few regions may change sides.
    same = router.to(dtype)(x).choice == expected
    assert same.float().mean() > 0.97


def test_without_variance_every_region_is_coarsest():
    """Nothing is wrong with one query where all tokens are the same."""
    x = torch.ones(1, 8, 8, 8)
    assert (ErrorRouter(8, (1, 2, 4))(x).choice == 2).all()


@pytest.mark.parametrize('build', [pvt, deit])
def test_the_calibration_travels_in_the_state_dict(build):
    source, model = build().eval(), build().eval()
    model.load_state_dict(source.state_dict())
    x = torch.rand(2, 3, 96, 128)
    for ours, theirs in zip(model.routers, source.routers, strict=True):
        assert ours.weight == theirs.weight
        assert ours.scale.equal(theirs.scale)
        assert ours.exponent.equal(theirs.exponent)
    assert [m.granularity.tolist() for m in run(model, x).maps] == [
        m.granularity.tolist() for m in run(source, x).maps
    ]


@pytest.mark.parametrize('build', [pvt, deit])
def test_one_for_other_granularities_is_refused(build):
    state = build(granularities=(1, 2, 4)).state_dict()
    for other in ((1, 2, 8), (1, 4)):
        with pytest.raises(UserError, match=r'granularities=\(1, 2, 4\)'):
            build(granularities=other).load_state_dict(state)
    build('finest', granularities=(1, 4)).load_state_dict(state)


@pytest.mark.parametrize('build', [pvt, deit])
@pytest.mark.parametrize('routing', ['finest', 'learned', 'variance'])
def test_without_its_entries_it_starts_uncalibrated(build, routing):
    model = build()
    model.load_state_dict(build(routing).state_dict())
    check_uncalibrated(model)


def check_uncalibrated(model):
    for router in model.routers:
        assert router.weight == 1
        assert router.scale.tolist() == [0, 0.75, 0.9375]
        assert router.exponent.tolist() == [1, 1, 1]


def test_initialising_forgets_the_calibration():
    model = pvt()
    assert any(router.weight != 1 for router in model.routers)
    model.init_weights()
    check_uncalibrated(model)


def test_training_computes_the_chosen_queries_only():
    model = pvt().train()
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    assert counter.get_total_flops() / 2 == model.cost.dynamic.sum()
    assert model.cost.dynamic.lt(0.95 * model.cost.dense).all()
    maps = model(x)
    assert not model.cost.dynamic.requires_grad
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('build', [pvt, deit])
def test_at_no_price_it_is_the_dense_twin(build):
    model, dense = build(price=-1).eval(), build('finest').eval()
    dense.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 100, 132)
    for ours, theirs in zip(model(x), dense(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.cost.ratio.eq(1).all()


def run(model, x):
    with torch.no_grad():
        model(x)
    return model.cost


@given(
    price=st.floats(-2, 5),
    progress=st.floats(0.01, 1),
    granularities=st.sampled_from([(1, 2, 4), (2, 4), (1, 2)]),
)
@settings(max_examples=20, deadline=None)
def test_an_oracle_decides_alike_where_the_prediction_is_the_truth(
    price, progress, granularities
):
    router = calibrate(ErrorRouter(8, granularities, price=price))
    oracle = build_router('oracle', 8, granularities, price=price)
    oracle.load_state_dict(router.state_dict())
    x = textured(2)
    content = torch.rand(router.predict(x).shape[:-1]) > 0.2
    for mode in (True, False):
        for which in (router, oracle):
            which.train(mode).train_progress = progress
        for regions in (content, None):
            decision = oracle(x, regions, lambda: router.predict(x))
            assert decision.gate is None
            assert decision.choice.equal(router(x, regions).choice)


@pytest.mark.parametrize('build', [pvt, deit])
@pytest.mark.parametrize('shape', [(2, 3, 128, 128), (1, 3, 100, 77)])
def test_an_oracle_chooses_by_what_its_block_would_get_wrong(build, shape):
    model = build('oracle').eval()
    blocks = [m for m in model.modules() if isinstance(m, DGEBlock)]
    expected, flops = [], [0.0]

    def look(block, args):
        tokens, size, *_ = args
        errors = block.errors(tokens, size)
        objective = block.router.weight * errors + block.router.cost
        expected.append(objective.argmin(-1))
        counts = query_counts(size, block.granularities)
        chosen = counts.expand_as(errors).gather(-1, expected[-1][..., None])
        extra = tokens.shape[1] - size[0] * size[1]
        cost = block.attn.flops(size, extra) + block.mlp.flops()
        spared = tokens.shape[1] - extra - chosen.flatten(1).sum(1)
        flops[0] = flops[0] + cost.per_query * spared.double()

    for block in blocks:
        block.register_forward_pre_hook(look)
    cost = run(model, torch.rand(shape))
    levels = {side: k for k, side in enumerate(blocks[0].granularities)}
    for found, choice in zip(cost.maps, expected, strict=True):
        found = found.granularity.clone().apply_(levels.get)
        assert (found == choice).float().mean() > 0.99
    torch.testing.assert_close(cost.dynamic, cost.dense - flops[0])
    assert cost.ratio.min() < 0.99


def test_an_oracle_runs_in_training_and_under_autocast():
    model = pvt('oracle', drop_path_rate=0.3).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        maps = model(torch.rand(2, 3, 64, 64))
    sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_shuffled_spends_the_same_in_each_block_and_image_elsewhere():
    router = calibrate(ErrorRouter(12, (1, 2, 4)))
    shuffled = build_router('shuffled', 12, (1, 2, 4))
    shuffled.load_state_dict(router.state_dict())
    x = torch.randn(3, 32, 40, 12) * torch.rand(3, 32, 40, 1)
    own, other = router(x).choice, shuffled(x).choice
    for k in range(3):
        counts = [choice.eq(k).flatten(1).sum(1) for choice in (own, other)]
        assert counts[0].equal(counts[1])
    assert not own.equal(other)


def test_shuffled_spends_the_same_beside_padding():
    router = calibrate(ErrorRouter(8, (1, 2, 4)).eval())
    shuffled = build_router('shuffled', 8, (1, 2, 4)).eval()
    shuffled.load_state_dict(router.state_dict())
    x, content = textured(4), torch.rand(4, 8, 8) < 0.6
    router.weight.fill_(3.0), shuffled.weight.fill_(3.0)
    own, other = router(x, content).choice, shuffled(x, content).choice
    for k in range(3):
        counts = [choice.eq(k).flatten(1).sum(1) for choice in (own, other)]
        assert counts[0].equal(counts[1])
    assert not own.equal(other)
    assert other[~content].eq(2).all()
