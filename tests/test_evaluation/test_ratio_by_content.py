"""The ratio against the annotations."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mmdge import RatioByContent
from mmdge.evaluation import ratio_by_content
from mmdge.evaluation.ratio_by_content import (
    content,
    correlation,
    edge_share,
)
from mmdge.utils import UserError

LABELS = torch.tensor(
    [
        [0, 0, 1, 1],
        [0, 0, 1, 255],
        [0, 0, 1, 255],
        [2, 2, 2, 255],
    ]
)


def sample(ratio=0.5, boxes=None, labels=None, **extra):
    """What the evaluator makes of a host's data sample."""
    cost = dict(dynamic=ratio * 4e9, dense=4e9, region_spread=0.2)
    found = dict(backbone_cost=cost, ori_shape=(100, 200), **extra)
    if boxes is not None:
        bboxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        found['gt_instances'] = dict(bboxes=bboxes)
    if labels is not None:
        found['gt_sem_seg'] = dict(data=labels[None])
    return found


def evaluate(samples, **kwargs):
    metric = RatioByContent(**kwargs)
    metric.process({}, samples)
    return metric.evaluate(size=len(samples))


def test_objects_and_their_area_of_the_original_image():
    # The sizes as the network saw them do not matter.
    two = sample(boxes=[[0, 0, 10, 20], [5, 5, 45, 55]], img_shape=(999, 999))
    assert content(two) == dict(objects=2, area=(200 + 2000) / 20000)
    assert content(sample(boxes=[])) == dict(objects=0, area=0)


def test_edges_and_classes_of_what_is_labelled():
    # Right: three pixels in column 1. Below: row 2, columns 0 to 2.
    found = content(sample(labels=LABELS))
    assert found == dict(edges=5 / 13, classes=3)
    # As the files hold them, and as mmdet packs them.
    packed = dict(gt_sem_seg=dict(sem_seg=LABELS.byte()[None]))
    assert content(packed) == found
    nothing = torch.full((1, 4, 4), 255)
    assert content(sample(labels=nothing)) == dict(edges=0, classes=0)


def by_loop(labels):
    """Edges, pixel by pixel."""
    height, width = labels.shape
    edges = total = 0
    for y in range(height):
        for x in range(width):
            if labels[y, x] == 255:
                continue
            total += 1
            near = [
                labels[p]
                for p in ((y, x + 1), (y + 1, x))
                if p[0] < height and p[1] < width
            ]
            edges += any(n not in (255, labels[y, x]) for n in near)
    return edges / max(total, 1)


@given(
    arrays(
        np.int64,
        array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.sampled_from([0, 1, 7, 255]),
    )
)
def test_edges_are_those_of_a_loop(labels):
    found = edge_share(torch.from_numpy(labels))
    assert found == pytest.approx(by_loop(labels))


def test_no_annotations_no_quantities():
    assert content(sample()) == {}
    # A detector's pipeline without LoadAnnotations.
    assert content(sample(gt_instances={})) == {}


def test_correlations_over_all_images():
    ratios, objects = [0.3, 0.4, 0.8, 0.5], [1, 2, 4, 4]
    result = evaluate(
        [
            sample(ratio, boxes=[[0, 0, 10, 10]] * number)
            for ratio, number in zip(ratios, objects, strict=True)
        ]
    )
    expected = np.corrcoef(ratios, objects)[0, 1]
    assert result == {
        'content/objects_corr': pytest.approx(expected),
        'content/area_corr': pytest.approx(expected),
        'content/ratio_min': pytest.approx(0.3),
        'content/ratio_max': pytest.approx(0.8),
    }


def test_less_for_more_is_negative():
    assert correlation([1, 2, 3], [0.5, 0.4, 0.3]) == pytest.approx(-1)


def test_a_constant_correlates_with_nothing():
    tenths = [0.1] * 3
    assert np.std(tenths) > 0, 'rounding alone'
    assert correlation(range(3), tenths) == 0
    assert correlation(tenths, range(3)) == 0
    assert correlation([1], [0.5]) == 0


def test_a_classifier_has_only_the_spread():
    result = evaluate([sample(0.25), sample(0.75)], prefix='c')
    assert result == {'c/ratio_min': 0.25, 'c/ratio_max': 0.75}


def test_a_quantity_is_held_against_the_images_that_have_it():
    samples = [sample(0.9)]
    for ratio in (0.1, 0.2, 0.4):
        boxes = [[0, 0, 9, 9]] * int(10 * ratio)
        samples.append(sample(ratio, boxes=boxes))
    result = evaluate(samples)
    assert result['content/objects_corr'] == pytest.approx(1)
    assert result['content/ratio_max'] == pytest.approx(0.9)


def test_rows_in_a_file(tmp_path):
    path = tmp_path / 'out.json'
    samples = [
        sample(0.5, boxes=[[0, 0, 100, 100]], labels=LABELS),
        sample(0.25),
    ]
    evaluate(samples, out_file=path)
    assert json.loads(path.read_text()) == [
        dict(ratio=0.5, objects=1, area=0.5, edges=5 / 13, classes=3),
        dict(ratio=0.25),
    ]


def test_only_the_first_rank_needs_the_folder(tmp_path, monkeypatch):
    path = tmp_path / 'no' / 'out.json'
    with pytest.raises(UserError, match='out_file .*no such folder'):
        RatioByContent(out_file=path)
    monkeypatch.setattr(ratio_by_content, 'is_main_process', lambda: False)
    RatioByContent(out_file=path).process({}, [sample()])


def test_a_missing_hook_is_named():
    with pytest.raises(ValueError, match='RatioByContent .*mmdge.CostHook'):
        RatioByContent().process({}, [dict(img_id=1)])


def test_an_empty_set_is_named():
    with pytest.raises(ValueError, match='saw no image'):
        RatioByContent().compute_metrics([])
