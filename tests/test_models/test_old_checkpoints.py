"""Checkpoints of version 0.1 give what they gave there."""

from pathlib import Path

import pytest
import torch

import mmdge

FILE = Path(__file__).parents[1] / 'data' / 'checkpoints_0.1.pth'
DATA = torch.load(FILE, weights_only=True)


@pytest.mark.parametrize(
    'saved',
    DATA['checkpoints'],
    ids=lambda saved: f'{saved["config"]["type"]} {saved["name"]}',
)
def test_outputs_and_costs(saved):
    config = dict(saved['config'])
    model = getattr(mmdge, config.pop('type'))(**config).eval()
    model.load_state_dict(saved['state_dict'])
    torch.manual_seed(2)  # as it was there, for random routing
    with torch.no_grad():
        outs = model(DATA['x'])
    for out, expected in zip(outs, saved['outputs'], strict=True):
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    for name in ('dynamic', 'dense'):
        assert getattr(model.cost, name).equal(saved[name])
    torch.testing.assert_close(
        model.cost.region_spread, saved['region_spread']
    )
