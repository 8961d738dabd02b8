"""What all methods share."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.methods.base import per_stage, valid_cells
from tests.small import deit, pvt


def test_valid_cells_hold_any_of_the_image():
    image = torch.zeros(3, 33, 48, dtype=torch.bool)
    image[0, :17, :16] = True
    image[1] = True
    mask = F.max_pool2d(image.float(), 8, ceil_mode=True)
    cells = valid_cells(mask, 2, (3, 3))
    assert cells[0].int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert cells[1].all()
    assert cells[2].all()  # nothing to tell padding from
    assert valid_cells(None, 2, (3, 3)) is None
    assert valid_cells(mask, 2, (2, 3)).shape == (3, 2, 3)


@pytest.mark.parametrize('build', [pvt, deit])
def test_a_map_tells_which_of_its_cells_are_padding(build):
    model, x = build().eval(), torch.zeros(2, 3, 100, 140)
    x[0, :, :50, :90] = 1.0
    x[1] = -1.0
    model(x)
    for found in model.cost.maps:
        rows, columns = -(-50 // found.cell), -(-90 // found.cell)
        expected = torch.zeros_like(found.valid[0])
        expected[:rows, :columns] = True
        assert found.valid[0].equal(expected) and found.valid[1].all()


def test_the_dense_twin_is_left_even_after_a_failure():
    model = pvt()
    with pytest.raises(ValueError), model.as_dense_twin():
        assert model.dense
        model(torch.rand(1, 5, 64, 64))
    assert not model.dense


def test_annealing_reaches_training_only():
    model, x = pvt('variance'), torch.rand(2, 3, 64, 64)
    model.anneal(0.0)
    model(x)
    assert model.cost.ratio.eq(1).all()
    model.eval()(x)
    assert model.cost.ratio.lt(1).all()


def test_one_value_or_one_for_each_stage():
    assert per_stage('error', 3, 'routing') == ['error'] * 3
    assert per_stage(('a', 'b'), 2, 'routing') == ('a', 'b')
    with pytest.raises(ValueError, match='must be one routing, or 3, one per'):
        per_stage(['a', 'b'], 3, 'routing')
