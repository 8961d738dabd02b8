"""Who goes on."""

import pytest
import torch

from mmdge.models.routing import ConfidenceRouter


@pytest.mark.parametrize(
    'price, goes',
    [
        (0.0, [True, True, True]),
        (0.5, [False, True, True]),
        (0.75, [False, False, True]),
        (1.0, [False, False, False]),
    ],
)
def test_an_image_goes_on_if_its_doubt_is_worth_the_price(price, goes):
    """Of confidence 1, .5 and .25."""
    logits = torch.tensor([[99.0, 0, 0, 0], [9, 9, -99, -99], [0, 0, 0, 0]])
    router = ConfidenceRouter(4, (1.0, 0.0), 1, price=price)
    assert router.eval().goes(logits).tolist() == goes
    assert router.goes(logits.half()).tolist() == goes
    assert router.adaptive == (price > 0)
