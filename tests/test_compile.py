"""Routed backbones as one graph of :func:`torch.compile`."""

import pytest
import torch

from mmdge.calibration import fix_shapes
from tests import small
from tests.small import pictures


@pytest.fixture(autouse=True)
def anew():
    torch.compiler.reset()


def check_one_graph(model, images):
    """Compile without a break, and compare."""
    compiled = torch.compile(
        model, backend='eager', fullgraph=True, dynamic=False
    )
    with torch.no_grad():
        expected, cost = model(images), model.cost
        found = compiled(images)
    torch.testing.assert_close(found, expected)
    assert model.cost is not cost
    assert model.cost.dynamic.equal(cost.dynamic)


@pytest.mark.parametrize(
    'build', [small.pvt, small.deit, small.dynamic_vit, small.dynamic_swin]
)
def test_constant_shapes_have_no_break(build):
    model, images = build().eval(), pictures(2, 64, 64)
    fix_shapes(model, [images])
    check_one_graph(model, images)


@pytest.mark.parametrize('build', [small.pvt, small.dynamic_vit])
def test_nor_has_one_image_whose_rows_are_counted_in_the_graph(build):
    images = pictures(2, 64, 64)[1:]
    # PyTorch's own name of what lets a graph hold a number of the data.
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        check_one_graph(build().eval(), images)
