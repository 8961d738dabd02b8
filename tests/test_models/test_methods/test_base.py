"""What all methods share."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.methods import Method
from tests.small import deit, pvt


def test_valid_cells_hold_any_of_the_image():
    image = torch.zeros(3, 33, 48, dtype=torch.bool)
    image[0, :17, :16] = True
    image[1] = True
    mask = F.max_pool2d(image.float(), 8, ceil_mode=True)
    method = Method()
    method.strides, method.cells = [8, 16], [1, 1]  # the mask's side is 8
    cells = method.valid_cells(mask, 1, (3, 3))
    assert cells[0].int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert cells[1].all()
    assert cells[2].all()  # nothing to tell padding from
    assert method.valid_cells(None, 1, (3, 3)) is None
    assert method.valid_cells(mask, 1, (2, 3)).shape == (3, 2, 3)


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
