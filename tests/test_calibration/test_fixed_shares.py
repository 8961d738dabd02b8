"""Constant shapes: every image gets what images get on average."""

from functools import partial
from unittest import mock

import pytest
import torch

from mmdge.calibration import fix_shapes
from mmdge.models.routing.fixed_shares import cell_counts, choose_shares
from mmdge.utils.counting import flop_counter
from tests import small

BUILDERS = {
    'pvt': partial(small.pvt, 'error'),
    'oracle': partial(small.pvt, 'oracle'),
    'uniform': partial(small.pvt, 'uniform'),
    'swin': partial(small.swin, coarse_queries=True, window_size=7),
    'pvt_v2': small.pvt_v2,
    'dpvt': small.dpvt,
    'dinov2': partial(small.dinov2, 'variance'),
    'convnext': small.convnext,
    'mixed': small.mixed_patch_vit,
    'merging': small.merging_vit,
}


@pytest.mark.parametrize('name', BUILDERS)
@torch.no_grad()
def test_counts_are_constants_and_true(name):
    model, x = BUILDERS[name]().eval(), small.pictures(3, 100, 76)
    model(x)
    ratio = model.cost.ratio.mean().item()
    fix_shapes(model, [x[:2], x[2:]])
    assert model.constant_shapes
    with mock.patch.object(torch.Tensor, 'tolist', side_effect=RuntimeError):
        outs = model(x)  # nothing is asked of the data
    cost = model.cost
    assert cost.dynamic.eq(cost.dynamic[0]).all()
    assert cost.ratio[0].item() == pytest.approx(ratio, abs=0.08)
    with flop_counter() as counter:
        model(x)
    if name != 'oracle':
        assert counter.get_total_flops() / 2 == cost.dynamic.sum()
    for i in range(len(x)):
        for out, alone in zip(outs, model(x[i : i + 1]), strict=True):
            torch.testing.assert_close(
                alone[0], out[i], atol=1e-5 * out.abs().max(), rtol=0
            )


def test_cells_go_to_the_candidate_that_they_want_most():
    logits = torch.tensor([[[0, 1, 9], [0, 5, 8], [0, 4, 0], [0, -1, 7.0]]])
    shares = (0.25, 0.25, 0.5)
    assert cell_counts(4, shares) == [1, 1, 2]
    assert choose_shares(logits, shares).tolist() == [[2, 1, 0, 2]]
    valid = torch.tensor([[True, True, False, True]])
    assert choose_shares(logits, shares, valid).tolist() == [[2, 1, 2, 0]]
    assert [cell_counts(1, s) for s in ((0.4, 0.6), (0.6, 0.4))] == [
        [0, 1],
        [1, 0],
    ]


def test_mistakes_are_named():
    model = small.pvt('error').eval()
    with pytest.raises(ValueError, match='no image was given'):
        fix_shapes(model, [])
    model.varying = 'its paths differ'
    with pytest.raises(ValueError, match='DGEPVT cannot have.*paths differ'):
        fix_shapes(model, [])
