"""Scaled pipelines, fronts, and what is chosen."""

import pytest
from mmengine.config import Config

from mmdge.calibration import operating_points as op
from mmdge.calibration import set_price
from mmdge.utils import UserError
from tests.small import pvt

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')


def resized(transform, factor=0.5, stride=32):
    """A transform of a pipeline that is scaled, but for its type."""
    pipeline = [LOAD, dict(transform), PACK]
    first, changed, *_, last = op.scale_pipeline(pipeline, factor, stride)
    assert (first, last) == (LOAD, PACK) and pipeline[1] == transform
    return {key: changed[key] for key in changed if key != 'type'}


@pytest.mark.parametrize(
    ('transform', 'expected'),
    [
        # Multiples of the stride stay such, others are rounded.
        (dict(type='Resize', scale=(1333, 800)), dict(scale=(666, 384))),
        (dict(type='mmseg.Resize', scale=[96, -1]), dict(scale=[64, -1])),
        (dict(type='Resize', scale_factor=1.5), dict(scale_factor=0.75)),
        (dict(type='Resize', scale=7, keep_ratio=True),
         dict(scale=4, keep_ratio=True)),
        (dict(type='ResizeEdge', scale=256, edge='short'),
         dict(scale=128, edge='short')),
        (dict(type='FixShapeResize', width=640, height=320),
         dict(width=320, height=160)),
    ],
)  # fmt: skip
def test_what_resizes_is_scaled(transform, expected):
    assert resized(transform) == expected


def test_patches_of_14_stay_whole():
    resize = dict(type='Resize', scale=(476, 364))
    assert resized(resize, 0.75, 14) == dict(scale=(364, 280))


def test_what_follows_the_size_is_scaled_with_it():
    pipeline = [
        LOAD,
        dict(type='ResizeEdge', scale=256),
        dict(type='CenterCrop', crop_size=192),
        dict(type='Pad', size_divisor=32),
    ]
    scaled = op.scale_pipeline(pipeline, 0.5, 32)
    assert [t.get('crop_size') for t in scaled] == [None, None, 96, None]
    assert scaled[3] == pipeline[3]
    assert op.scale_pipeline(pipeline, 1) == pipeline


def test_a_pipeline_that_does_not_resize_does():
    scaled = op.scale_pipeline([LOAD, PACK], 0.5)
    resize = dict(type='Resize', scale_factor=0.5, keep_ratio=True)
    assert scaled == [LOAD, resize, PACK]


@pytest.mark.parametrize('name', ['RandomResize', 'TestTimeAug'])
def test_an_augmented_test_is_refused(name):
    transform = dict(type=name, transforms=[])
    with pytest.raises(UserError, match=f'a {name}, for which there is no'):
        op.scale_pipeline([LOAD, transform], 0.5)


def test_a_data_set_of_both_loaders_is_scaled_once():
    loader = dict(
        dataset=dict(
            type='RepeatDataset',
            dataset=dict(pipeline=[LOAD, dict(type='Resize', scale=100)]),
        )
    )
    cfg = Config(dict(test_dataloader=loader))
    cfg.val_dataloader = cfg.test_dataloader
    scaled = op.scale_config(cfg, 0.5)
    for split in ('test', 'val'):
        pipeline = scaled[f'{split}_dataloader'].dataset.dataset.pipeline
        assert pipeline[1].scale == 50
    assert cfg.test_dataloader.dataset.dataset.pipeline[1].scale == 100


def test_points_of_100():
    assert op.points_of_100('coco/bbox_mAP', 'mmdet') == 100
    assert op.points_of_100('coco_panoptic/PQ', 'mmdet') == 1
    assert op.points_of_100('mIoU', 'mmseg') == 1


def test_front():
    nan = float('nan')
    costs, values = [1, 2, 2, 3, 3, nan], [5, 7, 6, 7, 8, 9]
    assert op.pareto_front(costs, values) == [
        *(True, True, False, False, True, False)
    ]
    assert op.pareto_front([1, 1], [5, 5]) == [True, True]


def test_ratio_for_a_time():
    times = {1.0: 30.0, 0.5: 20.0, 0.7: 19.0}
    assert op.ratio_for_time(times, 25) == pytest.approx(0.85)
    # Below those measured it goes on, though not too far at once.
    assert op.ratio_for_time(times, 18) == pytest.approx(0.4)
    assert op.ratio_for_time(times, 1) == 0.25


def test_copies_share_weights_but_not_routers():
    model = pvt('error').eval()
    copy = op.share_weights(model)
    for one, other in zip(model.parameters(), copy.parameters(), strict=True):
        assert one is other
    set_price(copy, 2.0)
    copy.routers[0].weight.fill_(7)
    assert model.routers[0].price == 0 and model.routers[0].weight != 7


def test_stages_that_are_static_stay_so():
    backbone = dict(routing=['variance', 'finest'], price=1.0)
    op.set_routing(backbone, 'error')
    assert backbone == dict(routing=['error', 'finest'])
    op.set_routing(backbone, 'finest')
    assert backbone == dict(routing='finest')


def point(scale, method, value, flops, ms, ratio=None, **entries):
    """One whose backbone is half of the whole model."""
    ends = dict.fromkeys(('', '_p5', '_p95'), flops / 2)
    return dict(
        scale=scale,
        method=method,
        ratio_asked=ratio,
        control=method == 'random',
        value=value,
        model_GFLOPs=flops,
        metrics={op.SPENT + end: each for end, each in ends.items()},
        seconds=dict.fromkeys(('lower', 'median', 'upper'), ms / 1000),
        **entries,
    )


@pytest.fixture
def points():
    return [
        point(1, 'dense', 50, 100, 40),
        point(0.5, 'dense', 40, 25, 10),
        point(1, 'error', 49, 60, 45, 0.5),
        point(0.5, 'error', 40, 20, 12, 0.5),
        point(1, 'random', 60, 1, 1, 0.5),
    ]


def test_what_the_fronts_say_of_a_smaller_input(points):
    said = op.mark_fronts(points)
    marks = [[p.get(f'front_{name}') for p in points] for name in op.COSTS]
    assert marks == [
        [True, False, True, True, None],
        [True, True, False, False, None],
    ]
    assert said == [
        'A smaller input alone is on the front of ms: scale 0.5 dense.',
        'No dynamic point is on the front of ms: the dense model at some '
        'scale is as good as each, and no dearer.',
    ]


@pytest.mark.parametrize(
    ('target', 'chosen'),
    [
        (dict(drop=1, by='GFLOPs'), 2),
        (dict(drop=10, by='GFLOPs'), 3),
        (dict(drop=10), 1),
        (dict(ms=40), 0),
        (dict(ms=39), 1),
        # As much as was calibrated for it, and no more.
        (dict(ratio=0.5), 2),
        (dict(ratio=0.3), 1),
    ],
)
def test_chosen(points, target, chosen):
    assert op.choose(points, points[0], **target) is points[chosen]


def test_a_time_that_was_searched_for_may_be_missed_by_a_tenth(points):
    points[2]['ms_asked'] = 42
    points[0]['value'] = 10
    assert op.choose(points, None, ms=42) is points[2]
    assert op.choose(points, None, ms=41) is points[1]


@pytest.mark.parametrize(
    ('target', 'nearest'),
    [
        (dict(drop=0.5, by='GFLOPs'), 'scale 1 error 0.5, 49.00 at 60 GFLOPs'),
        (dict(drop=-99), 'scale 0.5 dense, 40.00 at 25 GFLOPs and 10 ms'),
        (dict(ms=9), 'scale 0.5 dense'),
        (dict(ratio=0.1), 'scale 0.5 error 0.5'),
    ],
)
def test_what_no_point_meets_is_said_with_the_nearest(points, target, nearest):
    with pytest.raises(
        UserError, match=f'no point .* the nearest is {nearest}'
    ):
        op.choose(points, points[0], **target)
