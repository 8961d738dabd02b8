"""Constant shapes of the methods that keep a part of each image."""

import pytest
import torch

from mmdge.calibration import fix_shapes
from mmdge.utils.counting import flop_counter
from tests import small
from tests.small import pictures

BUILD = [
    small.dynamic_vit,
    lambda: small.dynamic_vit(reactivate=True, routing='uniform'),
    small.dynamic_swin,
    small.cf_vit,
]


@pytest.fixture(params=BUILD)
def model(request):
    return request.param().eval()


@torch.no_grad()
def test_every_image_gets_what_one_without_padding_gets(model):
    images = pictures(3, 64, 64)  # the first has no padding
    expected = [out[0] for out in model(images)]
    dynamic = model.cost.dynamic[0]
    model.constant_shapes = True
    with flop_counter() as counter:
        outs = model(images)
    torch.testing.assert_close([out[0] for out in outs], expected)
    assert model.cost.dynamic.tolist() == [dynamic] * 3
    assert model.cost.dynamic.sum() == counter.get_total_flops() / 2
    for decided in model.cost.maps:  # what is padding comes last
        dearest = decided.share == decided.share.max()
        for got, valid in zip(dearest, decided.valid, strict=True):
            assert got[valid].all() or not got[~valid].any()
    images[1] = torch.nan
    found = [out[0] for out in model(images)]
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_price_becomes_the_part_that_images_got():
    model = small.dynamic_vit(amount='price', price=0.2).eval()
    images = pictures(4, 64, 64)
    model(images)
    got = [
        decided.share[decided.valid].mean().item()
        for decided in model.cost.maps
    ]
    fix_shapes(model, [images])
    assert [r.fixed_shares[0] for r in model.routers] == pytest.approx(got)
    model(images)
    assert len(set(model.cost.dynamic.tolist())) == 1
    kept = [decided.share.sum((1, 2)) for decided in model.cost.maps]
    assert [num[0].item() for num in kept] == [int(64 * part) for part in got]
