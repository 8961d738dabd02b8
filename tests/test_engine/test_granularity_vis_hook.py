"""The picture shows what the routers decided."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from mmdge import DGEPVT, GranularityVisHook
from mmdge.engine.hooks.granularity_vis_hook import (
    covers,
    draw_granularity,
    stage_panels,
    to_picture,
)
from mmdge.models.cost import ComputeMap, Cost


def cost():
    flops = torch.tensor([1.0, 2.0], dtype=torch.float64)
    maps = torch.tensor([[[1, 4], [2, 1]], [[4, 4], [4, 4]]])
    shares = maps.double() ** -2
    routed = Cost(flops, 4 * flops, (ComputeMap(shares, 16, 'block1.0'),))
    return Cost.of_stages([routed, Cost(flops, flops)])


def test_panels_are_the_maps_in_pixels():
    routed, dense = stage_panels(cost(), 0, (30, 32))
    assert routed.title == 'stage 1: 25% of FLOPs'
    assert routed.queries.shape == (30, 32)
    assert routed.queries[0, 15] == 1 and routed.queries[0, 16] == 1 / 16
    assert routed.queries[16, 0] == 1 / 4 and routed.queries[29, 31] == 1
    assert np.isnan(dense.queries).all()


def test_blocks_of_a_stage_are_averaged():
    stage = cost().stages[0]
    other = ComputeMap(torch.full((2, 2, 2), 1 / 16), 16, 'block1.1')
    both = Cost(stage.dynamic, stage.dense, (*stage.maps, other))
    (panel,) = stage_panels(Cost.of_stages([both]), 0, (32, 32))
    assert panel.queries[0, 0] == pytest.approx((1 + 1 / 16) / 2)


def test_what_is_decided_for_the_whole_image_blurs_no_panel():
    stage = cost().stages[0]
    whole = ComputeMap(torch.zeros(2, 1, 1), 32, 'exit')
    both = Cost(stage.dynamic, stage.dense, (*stage.maps, whole))
    alone = Cost(stage.dynamic, stage.dense, (whole,))
    places, nothing = stage_panels(Cost.of_stages([both, alone]), 0, (32, 32))
    assert places.queries[0, 0] == 1
    assert (nothing.queries == 0).all()


def test_picture_has_a_row_per_image():
    image = np.full((32, 48, 3), 128, np.uint8)
    panels = stage_panels(cost(), 0, (32, 48))
    one = draw_granularity([(image, panels)])
    two = draw_granularity([(image, panels)] * 2)
    assert one.dtype == np.uint8 and one.shape[2] == 3
    assert two.shape[0] > one.shape[0] and two.shape[1] == one.shape[1]


def test_picture_is_what_the_model_saw():
    bgr = torch.zeros(3, 4, 5, dtype=torch.uint8)
    bgr[0] = 200
    picture = to_picture(bgr)
    assert picture.shape == (4, 5, 3)
    assert picture[0, 0].tolist() == [0, 0, 200]
    normalised = to_picture(torch.tensor([-1.0, 1.0]).view(1, 1, 2))
    assert normalised.tolist() == [[[0] * 3, [255] * 3]]


def test_maps_of_windows_are_told_from_maps_of_the_image():
    whole = cost()
    assert covers(whole, (32, 32)) and covers(whole, (30, 47))
    assert not covers(whole, (32, 64))
    twice = Cost.add_up([whole.stages[0], whole.stages[0]])
    assert not covers(twice, (32, 32))


@pytest.mark.parametrize(
    'views',
    [[torch.zeros(3, 32, 32)] * 2, torch.zeros(2, 3, 32, 32)],
    ids=['listed', 'collated'],
)
def test_augmented_tests_are_left_out_with_a_word(views):
    said = []
    backbone = DGEPVT('tiny', routing='variance')
    backbone.cost = cost()
    runner = SimpleNamespace(
        model=backbone, logger=SimpleNamespace(warning=said.append)
    )
    GranularityVisHook().after_test_iter(
        runner, 0, dict(inputs=[views]), [BaseDataElement()]
    )
    assert 'test-time augmentation' in said[0]
