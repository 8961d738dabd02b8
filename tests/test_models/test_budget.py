"""Shares that meet a budget."""

import pytest
import torch

from mmdge import share_for_budget
from mmdge.models import DGEPVT

ARCH = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
)


@pytest.mark.parametrize('budget', [0.35, 0.5, 0.7, 0.95])
def test_random_routing_spends_the_budget(budget):
    backbone = dict(type='mmdge.DGEPVT', arch=ARCH)
    share = share_for_budget(backbone, budget, (256, 256))
    assert sum(share) == pytest.approx(1)
    routing = dict(type='RandomRouter', share=share)
    model = DGEPVT(ARCH, routing=routing).eval()
    with torch.no_grad():
        model(torch.ones(100, 3, 256, 256))
    assert model.cost.ratio.mean().item() == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize('budget', [0.92, 0.97])
def test_static_stages_stay_so(budget):
    routing = ['finest', 'finest', 'random', 'random']
    backbone = dict(type='mmdge.DGEPVT', arch=ARCH, routing=routing)
    share = share_for_budget(backbone, budget, (256, 256))
    routing[2:] = [dict(type='RandomRouter', share=share)] * 2
    model = DGEPVT(ARCH, routing=routing).eval()
    with torch.no_grad():
        model(torch.ones(100, 3, 256, 256))
    assert model.cost.ratio.mean().item() == pytest.approx(budget, abs=5e-3)


def test_no_random_number_is_taken():
    before = torch.get_rng_state()
    share_for_budget(dict(type='mmdge.DGEPVT', arch=ARCH), 0.5, (64, 64))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize('budget', [0.05, 1.1])
def test_what_cannot_be_met_is_said(budget):
    backbone = dict(type='mmdge.DGEPVT', arch=ARCH)
    with pytest.raises(ValueError, match='all coarsest costs 0.[0-9]+ of'):
        share_for_budget(backbone, budget, (256, 256))


@pytest.mark.parametrize(
    'backbone, message',
    [
        (dict(arch=ARCH), 'needs the config of a dynamic backbone'),
        (dict(type='QuantileRouter'), 'needs the config of a dynamic'),
        (
            dict(type='mmdge.DGEPVT', granularities=[(1, 2)] * 4),
            'one set of granularities',
        ),
    ],
)
def test_other_configs_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        share_for_budget(backbone, 0.5, (256, 256))
