"""The search for a price: few calls, close, and clear where it can't."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.calibration import (
    collect_errors,
    find_price,
    ratio_at_price,
    set_price,
    set_routers,
)
from mmdge.utils import UserError
from tests.small import cf_vit

from .backbones import deit, pvt


def recorded(ratio_at):
    """The same function, and the list of the prices it was asked for."""
    prices = []

    def ask(price):
        prices.append(price)
        return ratio_at(price)

    return ask, prices


@given(
    middle=st.floats(-50, 50),
    width=st.floats(0.1, 50),
    ratio=st.floats(0.2, 0.9),
    tolerance=st.sampled_from([0.05, 0.01, 0.002]),
)
@settings(max_examples=100, deadline=None)
def test_a_smooth_ratio_is_met(middle, width, ratio, tolerance):
    def ratio_at(price):
        x = torch.tensor((middle - price) / width, dtype=torch.float64)
        return 0.1 + 0.9 * x.sigmoid().item()

    ask, prices = recorded(ratio_at)
    price, spent = find_price(ask, ratio, tolerance)
    assert abs(spent - ratio) <= tolerance
    assert spent == pytest.approx(ratio_at(price))
    assert len(prices) == len(set(prices)) <= 40


@given(
    edges=st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    ratio=st.floats(0.15, 0.95),
    max_steps=st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_of_steps_the_closest_that_was_tried(edges, ratio, max_steps):
    def ratio_at(price):
        above = sum(price >= edge for edge in edges)
        return 1 - 0.9 * above / len(edges)

    ask, prices = recorded(ratio_at)
    price, spent = find_price(ask, ratio, max_steps=max_steps)
    assert len(prices) <= max_steps
    assert price in prices and spent == pytest.approx(ratio_at(price))
    misses = [abs(ratio_at(p) - ratio) for p in prices]
    assert abs(spent - ratio) == pytest.approx(min(misses))
    if max_steps == 60 and len(edges) == 1:
        # Both sides of a step were seen.
        assert len({ratio_at(p) for p in prices}) == 2


def test_a_closer_ratio_takes_a_closer_look():
    def ratio_at(price):
        return 1 / (1 + max(price + 1, 0)) ** 2

    calls = []
    for tolerance in (0.1, 0.01, 1e-3, 1e-5):
        ask, prices = recorded(ratio_at)
        _, spent = find_price(ask, 0.5, tolerance)
        assert abs(spent - 0.5) <= tolerance
        calls.append(len(prices))
    assert calls == sorted(calls) and calls[0] < calls[-1] < 20


def test_what_is_spent_at_once_takes_one_call():
    ask, prices = recorded(lambda price: 0.5)
    assert find_price(ask, 0.5) == (0.0, 0.5)
    assert prices == [0.0]


@pytest.mark.parametrize(
    ('ratio', 'said'),
    [
        (0.1, r'ratio=0.1 .*: the backbone spends 0.300 even at a price of 4'),
        (0.9, r'ratio=0.9 .*: the backbone spends 0.800 even at a price of -'),
    ],
)
def test_out_of_reach(ratio, said):
    ask, prices = recorded(lambda price: 0.3 if price > 0 else 0.8)
    with pytest.raises(UserError, match=said):
        find_price(ask, ratio)
    assert len(prices) < 20


@pytest.mark.parametrize('build', [pvt, deit])
@pytest.mark.parametrize('routing', ['error', 'variance', 'learned', 'random'])
@pytest.mark.parametrize('ratio', [0.6, 0.8])
def test_ratios_of_backbones_are_met(build, routing, ratio):
    model = build(routing)
    images = list(torch.rand(4, 2, 3, 160, 160))
    if routing == 'error':
        set_routers(model, collect_errors(model, images[:2]))
    ratio_at, prices = recorded(ratio_at_price(model, images))
    price, spent = find_price(ratio_at, ratio, tolerance=0.01)
    assert spent == pytest.approx(ratio, abs=0.02)
    if routing == 'error':
        assert len(prices) < 20
    if routing != 'random':
        set_price(model, price)
        model(torch.cat(images))
        found = model.cost.ratio.mean().item()
        assert found == pytest.approx(spent, abs=1e-3)


def test_the_ratio_is_the_images_mean():
    model = pvt('variance')
    images = [torch.rand(2, 3, 96, 96), torch.rand(1, 3, 160, 64)]
    ratios = []
    set_price(model, 0.3)
    for batch in images:
        model(batch)
        ratios += model.cost.ratio.tolist()
    expected = sum(ratios) / 3
    ratio_at = ratio_at_price(model, images)
    assert ratio_at(0.3) == pytest.approx(expected)


def test_what_was_asked_before_is_remembered():
    model = pvt('random')
    ratio_at = ratio_at_price(model, [torch.rand(2, 3, 96, 96)])
    first, again = ratio_at(0.1), ratio_at(0.1)
    assert first == again != ratio_at(0.2)


def test_images_of_any_sizes_are_asked_in_any_batches():
    model = pvt('variance')
    sizes = [(96, 96), (96, 96), (160, 64), (96, 96), (64, 160)]
    images = [torch.rand(1, 3, *size) for size in sizes]
    apart = sum(ratio_at_price(model, [x])(0.2) for x in images) / 5
    assert ratio_at_price(model, images)(0.2) == pytest.approx(apart)


def test_a_backbone_that_routes_nothing():
    for model in (pvt('finest'), pvt(granularities=(1,)), cf_vit()):
        for ask in (ratio_at_price, collect_errors):
            with pytest.raises(UserError, match='none .*num_classes'):
                ask(model, [torch.rand(1, 3, 64, 64)])
