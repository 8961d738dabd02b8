"""Routers by error: where is a query worth its FLOPs?"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.calibration import collect_errors, set_routers
from mmdge.models import DGEPVT
from mmdge.models.routing import (
    ErrorRouter,
    Grains,
    build_router,
    region_variance,
)
from mmdge.utils import UserError
from mmdge.utils.counting import flop_counter
from tests.small import PVT, deit, pictures, pvt

from .maps import GRAINS, grains, textured

both = pytest.mark.parametrize('build', [pvt, deit])


def calibrated(router):
    """No two routers are alike."""
    router.weight.copy_(4 * torch.rand(()))
    router.scale.mul_(0.5 + torch.rand(len(router.scale)))
    router.exponent.add_(torch.rand(len(router.exponent)) - 0.5)
    return router


def error_router(dims=8, sides=(1, 2, 4), price=0.0):
    return calibrated(ErrorRouter(dims, *grains(*sides), price=price))


def like(router, kind, dims=8):
    """A router of another kind with the same settings, in evaluation."""
    cost = router.cost.tolist()
    other = build_router(kind, dims, cost, router.cell, router.price)
    other.load_state_dict(router.state_dict())
    return other.eval()


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
    router = error_router(sides=granularities, price=price).eval()
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
    router = error_router().eval()
    x = textured(2)
    last = torch.zeros(2, 8, 8)
    for router.price in sorted(prices):
        choice = router(x).choice
        assert (choice >= last).all()
        last = choice


def test_the_finest_has_no_error():
    router = error_router()
    errors = router.predict(textured())
    assert errors[..., 0].eq(0).all()
    assert errors[..., 1:].gt(0).all()


@pytest.mark.parametrize('granularities', [(1, 2, 4), (2, 4), (2, 4, 8)])
def test_uncalibrated_it_takes_the_tokens_to_be_independent(granularities):
    x = 3 * torch.randn(2, 64, 64, 8)
    router = ErrorRouter(8, *grains(*granularities))
    predicted = router.predict(x).mean((0, 1, 2))
    maps = Grains((64, 64), granularities)
    rows = torch.cat(maps.candidates(x.flatten(1, 2)), 1)
    true = maps.errors(rows).mean((0, 1, 2))
    torch.testing.assert_close(predicted, true, rtol=0.1, atol=0)


def test_progress_goes_from_finest_to_its_own_choice():
    router = error_router()
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


def test_padding_gets_the_coarsest():
    router = error_router().eval()
    router.weight.fill_(1e6)
    x, valid = (
        torch.randn(4, 32, 32, 8),
        torch.ones(4, 8, 8, dtype=torch.bool),
    )
    assert (router(x, valid).choice == 0).all()
    valid[:, 5:] = False
    choice = router(x, valid).choice
    assert (choice[:, 5:] == 2).all() and (choice[:, :5] == 0).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_decides_as_float32_does(dtype):
    router = error_router().eval()
    x = (30 * textured(8)).to(dtype)
    expected = router(x.float()).choice
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert router(x).choice.equal(expected)
    router.weight.fill_(1e5)  # more than float16 holds
    x = x / 200
    expected = router(x.float()).choice
    assert expected.unique().numel() > 1
    assert router.to(dtype)(x).choice.equal(expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_spends_as_in_float32(dtype):
    """Blocks that do little weigh their errors by more than float16 holds."""
    images = list(pictures(8, 96, 96).split(1))
    model = DGEPVT(PVT, routing='error', pretrain_img_size=96).eval()
    set_routers(model, collect_errors(model, images))
    for router in model.routers:
        router.weight.mul_(2)
    assert max(router.weight for router in model.routers) > 65504
    cast = copy.deepcopy(model).to(dtype)
    ratios = [
        torch.cat([run(m, x.to(kind)).ratio for x in images])
        for m, kind in ((model, torch.float32), (cast, dtype))
    ]
    assert ratios[0].std() > 0.02
    torch.testing.assert_close(*ratios, atol=0.02, rtol=0)


def test_without_variance_every_region_is_coarsest():
    """Nothing is wrong with one query where all tokens are the same."""
    x = torch.ones(1, 8, 8, 8)
    assert (ErrorRouter(8, *GRAINS)(x).choice == 2).all()


@both
def test_the_calibration_travels_in_the_state_dict(build):
    source, model = build('error').eval(), build('error').eval()
    model.load_state_dict(source.state_dict())
    x = torch.rand(2, 3, 96, 128)
    for ours, theirs in zip(model.routers, source.routers, strict=True):
        assert ours.weight == theirs.weight
        assert ours.scale.equal(theirs.scale)
        assert ours.exponent.equal(theirs.exponent)
    assert [m.share.tolist() for m in run(model, x).maps] == [
        m.share.tolist() for m in run(source, x).maps
    ]


@both
def test_one_for_other_granularities_is_refused(build):
    state = build('error').state_dict()
    for other in ((1, 2, 8), (1, 4)):
        with pytest.raises(UserError, match=r'granularities=\(1, 2, 4\)'):
            build('error', granularities=other).load_state_dict(state)
    build('finest', granularities=(1, 4)).load_state_dict(state)


@both
@pytest.mark.parametrize('routing', ['finest', 'learned', 'variance'])
def test_without_its_entries_it_starts_uncalibrated(build, routing):
    model = build('error')
    model.load_state_dict(build(routing).state_dict())
    check_uncalibrated(model)


def check_uncalibrated(model):
    for router in model.routers:
        assert router.weight == 1
        assert router.scale.tolist() == [0, 0.75, 0.9375]
        assert router.exponent.tolist() == [1, 1, 1]


def test_initialising_forgets_the_calibration():
    model = pvt('error')
    assert any(router.weight != 1 for router in model.routers)
    model.init_weights()
    check_uncalibrated(model)


def test_training_computes_the_chosen_queries_only():
    model = pvt('error')
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    assert counter.get_total_flops() / 2 == model.cost.dynamic.sum()
    assert model.cost.dynamic.lt(0.95 * model.cost.dense).all()
    maps = model(x)
    assert not model.cost.dynamic.requires_grad
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


@both
def test_at_no_price_it_is_the_dense_twin(build):
    model, dense = build('error', price=-1).eval(), build('finest').eval()
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
    router = error_router(sides=granularities, price=price)
    oracle = like(router, 'oracle')
    x = textured(2)
    valid = torch.rand(router.predict(x).shape[:-1]) > 0.2
    for mode in (True, False):
        for which in (router, oracle):
            which.train(mode).train_progress = progress
        for regions in (valid, None):
            decision = oracle(x, regions, lambda: router.predict(x))
            assert decision.gate is None
            assert decision.choice.equal(router(x, regions).choice)


@both
@pytest.mark.parametrize('shape', [(2, 128, 128), (1, 100, 77)])
def test_an_oracle_chooses_by_what_its_block_would_get_wrong(build, shape):
    model, expected = build('oracle').eval(), []

    def look(router, args):
        _, valid, errors = args
        objective = router.weight * errors() + router.cost
        best = objective.argmin(-1).where(valid, 2)  # padding is coarsest
        expected.append(router.cost[best].double())

    for router in model.routers:
        router.register_forward_pre_hook(look)
    cost = run(model, pictures(*shape))
    assert all(
        found.share.equal(share)
        for found, share in zip(cost.maps, expected, strict=True)
    )
    assert cost.region_spread.max() > 0


def test_shuffled_spends_the_same_in_each_block_and_image_elsewhere():
    router = error_router(dims=12)
    shuffled = like(router, 'shuffled', dims=12)
    x = torch.randn(3, 32, 40, 12) * torch.rand(3, 32, 40, 1)
    for valid in (None, torch.rand(3, 8, 10) < 0.6):
        own, other = router(x, valid).choice, shuffled(x, valid).choice
        for k in range(3):
            counts = [
                choice.eq(k).flatten(1).sum(1) for choice in (own, other)
            ]
            assert counts[0].equal(counts[1])
        assert not own.equal(other)
        if valid is not None:
            assert other[~valid].eq(2).all()
