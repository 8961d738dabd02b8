import pytest
import torch

from mmdge.models.routing import EffectRouter


@pytest.fixture
def router():
    torch.manual_seed(0)
    made = EffectRouter(6, (1, 0.25), cell=2)
    made.weight.normal_()
    made.own_price.fill_(1.0)
    return made.eval()


def test_nothing_is_coarse_before_a_calibration():
    decision = EffectRouter(6, (1, 0.25), cell=2)(torch.randn(2, 8, 8, 6))
    assert decision.choice.eq(0).all()


def test_cells_whose_effect_is_worth_the_price_are_fine(router):
    x = torch.randn(3, 7, 9, 6)
    (effect,) = (router.features(x) @ router.weight.T + router.bias).unbind(-1)
    fine = router(x).choice == 0
    assert fine.equal(effect >= 0.75) and 0 < fine.float().mean() < 1


def test_padding_is_coarse(router):
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    router.bias.fill_(100.0)
    assert router(torch.randn(1, 8, 8, 6)).choice.eq(0).all()
    assert router(torch.randn(1, 8, 8, 6), valid).choice.eq(1).all()


def test_an_absorbed_price_decides_as_before(router):
    x = torch.randn(3, 8, 8, 6)
    router.price = 0.7
    before = router(x).choice
    router.absorb_price()
    assert router.price == 0 and router(x).choice.equal(before)
    assert router.own_price == pytest.approx(1.7)
