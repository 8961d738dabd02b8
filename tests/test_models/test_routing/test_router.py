"""What holds for every router, and the paper's."""

import pytest
import torch

from mmdge.models.routing import build_router

from .maps import GRAINS, shares, textured

ROUTINGS = [
    'learned',
    'variance',
    'error',
    'random',
    'uniform',
    dict(type='QuantileRouter', score='learned'),
]


@pytest.mark.parametrize('routing', ROUTINGS)
def test_gate_is_one_hot_and_float32_under_autocast(routing):
    router = build_router(routing, 8, *GRAINS)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        decision = router(textured().bfloat16())
    if not list(router.parameters()):
        assert decision.gate is None
        return
    assert decision.gate.dtype == torch.float32 and decision.gate.requires_grad
    one_hot = torch.nn.functional.one_hot(decision.choice, 3).float()
    torch.testing.assert_close(decision.gate.detach(), one_hot)
    with torch.no_grad():
        assert router(textured()).gate is None


def test_the_papers_router_starts_at_95_percent_finest():
    router = build_router('learned', 64, *GRAINS)
    with torch.no_grad():
        router.gate.weight.zero_()
    probabilities = router.gate.bias.softmax(-1)
    torch.testing.assert_close(
        probabilities, torch.tensor([0.95, 0.025, 0.025])
    )
    many = torch.randn(8, 64, 64, 64)
    finest = shares(build_router('learned', 64, *GRAINS)(many), 3)[0]
    assert 0.92 < finest < 0.98


def test_gumbel_noise_samples_the_softmax():
    router = build_router('learned', 4, *GRAINS)
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    decision = router(torch.zeros(16, 128, 128, 4))
    torch.testing.assert_close(
        shares(decision, 3), torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0
    )


@pytest.mark.parametrize('routing', [r for r in ROUTINGS if r != 'random'])
def test_an_image_is_routed_alone_as_in_a_batch(routing):
    router = build_router(routing, 8, *GRAINS)
    for _ in range(3):
        router(textured())
    router.eval()
    x = textured()
    together = router(x).choice
    for i in range(len(x)):
        assert router(x[i : i + 1]).choice.equal(together[i : i + 1])


def test_price_makes_regions_coarser():
    for routing in ROUTINGS:
        torch.manual_seed(0)
        x = textured()
        costs = []
        for price in (-100.0, 0.0, 100.0):
            router = build_router(routing, 8, *GRAINS, price=price).eval()
            choice = router(x).choice
            costs.append(router.cost[choice].mean().item())
        assert costs == sorted(costs, reverse=True)
        assert costs[0] == 1 and costs[2] == pytest.approx(1 / 16)


def test_finest_needs_no_router():
    assert build_router('finest', 8, *GRAINS) is None
    assert build_router('static', 8, *GRAINS) is None
    assert build_router('variance', 8, (1,), 1) is None


@pytest.mark.parametrize(
    'routing, message',
    [
        (
            'best',
            "'best' is unknown; allowed are 'finest', 'static', 'learned'",
        ),
        (dict(type='NoRouter'), 'names no registered router'),
        (dict(type='DGEPVT'), 'names no registered router'),
        (None, 'routing=None is unknown'),
        (dict(score='learned'), 'is unknown'),
        (dict(type='RandomRouter', share=(0.5, 0.5)), 'must give one'),
        (dict(type='RandomRouter', share=0.5), 'must give one'),
        (
            dict(type='RandomRouter', share=(float('nan'), 0.5, 0.5)),
            'must give one',
        ),
        (dict(type='RandomRouter', temperature=0), 'temperature must be'),
        (dict(type='QuantileRouter', num_steps=0), 'num_steps must be'),
        (dict(type='RandomRouter', share=(0.5, 0.4, 0.2)), 'add up to 1'),
        (dict(type='QuantileRouter', score='mean'), "but got 'mean'"),
        (dict(type='GumbelRouter', init_finest=1.0), 'init_finest'),
    ],
)
def test_mistakes_are_named(routing, message):
    with pytest.raises(ValueError, match=message):
        build_router(routing, 8, *GRAINS)


def test_price_is_checked_at_once():
    with pytest.raises(ValueError, match="price must be a number, but got 'x"):
        build_router('variance', 8, *GRAINS, price='x')
