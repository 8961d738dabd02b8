"""Power laws, and routers set by what was seen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.calibration import (
    BlockErrors,
    collect_errors,
    fit_power_law,
    set_routers,
)

from .backbones import pvt


@given(
    scale=st.floats(1e-3, 1e3),
    exponent=st.floats(0, 2),
    noise=st.floats(0, 0.5),
)
@settings(max_examples=40, deadline=None)
def test_a_law_is_recovered_from_noise(scale, exponent, noise):
    generator = torch.Generator().manual_seed(0)
    variance = torch.randn(4000, generator=generator).exp()
    error = scale * variance**exponent
    error *= (noise * torch.randn(4000, generator=generator)).exp()
    found = fit_power_law(variance, error)
    # The mean of a noise whose logarithm is normal.
    assert found[0] == pytest.approx(
        scale * math.exp(noise**2 / 2), rel=0.05 + noise / 4
    )
    assert found[1] == pytest.approx(exponent, abs=0.01 + noise / 10)


@given(seed=st.integers(0, 1000), spread=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_mean_is_met_whatever_the_errors_are(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    variance = (spread * torch.randn(200, generator=generator)).exp()
    error = torch.rand(200, generator=generator).square()
    scale, exponent = fit_power_law(variance, error)
    assert scale >= 0 and exponent >= 0
    mean = (scale * variance.double() ** exponent).mean().item()
    assert mean == pytest.approx(error.double().mean().item())


def test_where_the_variance_tells_nothing_the_mean_is_predicted():
    error = torch.rand(50)
    for variance in (torch.full((50,), 3.0), torch.zeros(50)):
        scale, exponent = fit_power_law(variance, error)
        assert exponent == 0 and scale == pytest.approx(error.mean().item())
    falling = torch.linspace(1, 2, 50)
    scale, exponent = fit_power_law(falling, 1 / falling)
    assert exponent == 0 and scale == pytest.approx((1 / falling).mean())


def test_no_error_at_all():
    scale, _ = fit_power_law(torch.rand(50), torch.zeros(50))
    assert scale == 0


def seen_of(model, errors, flops=1000.0):
    """Of every block: an error of the coarsest, and what a query costs."""
    num = len(model.routers)
    flops = flops if isinstance(flops, list) else [flops] * num
    variance = torch.linspace(1, 2, 10)
    per_grain = torch.tensor([0.0, errors / 2, errors])
    return [
        BlockErrors(variance, variance[:, None] * per_grain, part)
        for part in flops
    ]


def test_an_average_error_weighs_one_and_costly_queries_less():
    model = pvt()
    flops = [1e3, 2e3, 4e3, 5e3, 8e3]
    set_routers(model, seen_of(model, errors=7.0, flops=flops))
    weights = torch.stack([router.weight for router in model.routers])
    torch.testing.assert_close(
        weights[0] / weights, torch.tensor([1.0, 2, 4, 5, 8])
    )
    assert (weights * 7 * 1.5).mean().item() == pytest.approx(1)
    for router in model.routers:
        torch.testing.assert_close(
            router.scale, torch.tensor([0, 3.5, 7.0]), rtol=1e-4, atol=0
        )
        torch.testing.assert_close(router.exponent[1:], torch.ones(2))


def test_costs_are_in_units_of_the_finest_row():
    """Whose patches are 2 x 2 tokens has a quarter of the queries."""
    model = pvt(granularities=[(1, 2, 4), (2, 4, 8), (1, 2, 4), (1, 2, 4)])
    set_routers(model, seen_of(model, errors=1.0))
    first, second, _, third, _ = (router.weight for router in model.routers)
    assert second == 4 * first and third == first


def test_where_nothing_is_ever_wrong_all_is_coarsest():
    model = pvt()
    set_routers(model, seen_of(model, errors=0.0))
    model(torch.rand(1, 3, 128, 128))
    assert all(m.share.eq(1 / 16).all() for m in model.cost.maps)


def test_predictions_meet_the_errors_that_were_seen():
    model = pvt()
    seen = collect_errors(model, torch.rand(3, 1, 3, 128, 128))
    set_routers(model, seen)
    for router, entry in zip(model.routers, seen, strict=True):
        x = entry.variance[:, None].double() ** router.exponent
        torch.testing.assert_close(
            (router.scale * x).mean(0).float(), entry.errors.mean(0)
        )


@pytest.mark.parametrize('num', [0, 1, 7])
def test_of_few_regions_no_exponent_is_read(num):
    variance = torch.arange(1.0, num + 1)
    scale, exponent = fit_power_law(variance, 3 * variance**2)
    mean = variance.square().sum() / variance.sum().clamp(min=1)
    assert exponent == 1 and scale == pytest.approx(3 * mean.item())
    model = pvt()
    errors = variance[:, None] * torch.tensor([0.0, 1, 2])
    seen = [BlockErrors(variance, errors, 1e3)] * len(model.routers)
    set_routers(model, seen)
    for router in model.routers:
        assert router.weight.isfinite() and router.scale.isfinite().all()


def test_a_steep_law_overflows_nowhere():
    variance = torch.linspace(1, 1.01, 20)
    scale, exponent = fit_power_law(variance, variance**900)
    assert exponent == 4 and 0 < scale < 1e6
