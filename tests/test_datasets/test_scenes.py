"""What is drawn: labels that agree, and detail only where objects are."""

import cv2
import numpy as np
import pytest

from mmdge.datasets import CLASSES, draw_scene
from mmdge.datasets.shapes import scene_rng


def scenes(count, **kwargs):
    return [
        draw_scene(scene_rng(0, 'train', i), **kwargs) for i in range(count)
    ]


def test_scene_shapes_and_types():
    scene = draw_scene(np.random.default_rng(0), 128, object_size=(20, 40))
    n = len(scene.labels)
    assert n >= 1
    assert scene.image.shape == (128, 128, 3)
    assert scene.image.dtype == scene.semantic.dtype == np.uint8
    assert scene.semantic.shape == (128, 128)
    assert scene.masks.shape == (n, 128, 128) and scene.masks.dtype == bool
    assert scene.boxes.shape == (n, 4) and scene.boxes.dtype == np.float32
    assert scene.labels.dtype == np.int64


def test_scene_without_objects():
    scene = draw_scene(np.random.default_rng(0), num_objects=(0, 0))
    assert scene.boxes.shape == (0, 4)
    assert scene.masks.shape == (0, 256, 256)
    assert not scene.semantic.any()


def test_boxes_are_tight():
    for scene in scenes(8):
        for (x1, y1, x2, y2), mask in zip(
            scene.boxes.astype(int), scene.masks, strict=True
        ):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum() >= 16
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()


def test_masks_are_disjoint_and_equal_the_semantic_map():
    # Much overlap, so that shapes do hide one another.
    for scene in scenes(8, num_objects=(8, 8), overlap=0.6):
        assert scene.masks.sum(0).max() == 1
        values = (scene.labels + 1)[:, None, None]
        semantic = (scene.masks * values).sum(0)
        np.testing.assert_array_equal(semantic, scene.semantic)


def test_hidden_objects_are_dropped():
    counts = [
        len(s.labels) for s in scenes(8, num_objects=(8, 8), overlap=1.0)
    ]
    assert min(counts) < 8


def test_number_of_objects_varies():
    counts = {len(scene.labels) for scene in scenes(40)}
    assert min(counts) == 1 and max(counts) >= 7


def test_classes_are_those_asked_for():
    for scene in scenes(8, classes=('checks', 'rings')):
        assert set(scene.labels) <= {0, 1}


def test_objects_are_detailed_and_background_is_smooth():
    inside, outside = [], []
    for scene in scenes(8):
        grey = scene.image.mean(-1)
        mean = cv2.blur(grey, (8, 8))
        variance = cv2.blur(grey**2, (8, 8)) - mean**2
        # Away from every edge, those of distractors included.
        shapes = cv2.dilate(variance, np.ones((9, 9))) > 30
        kernel = np.ones((7, 7), np.uint8)
        objects = cv2.erode(scene.masks.any(0).astype(np.uint8), kernel)
        inside.append(variance[objects > 0].mean())
        outside.append(variance[~shapes].mean())
        assert shapes.mean() < 0.6
    assert np.mean(inside) > 200 * np.mean(outside)


def test_averaging_16_px_leaves_plain_patches():
    """A coarse token sees a tenth of the contrast of an object."""
    for name in CLASSES:
        fine, coarse = [], []
        for scene in scenes(
            6, classes=(name,), object_size=(60, 64), distractors=(0, 0)
        ):
            grey = scene.image.mean(-1)
            average = cv2.blur(grey, (16, 16))
            kernel = np.ones((31, 31), np.uint8)
            for mask in scene.masks:
                core = cv2.erode(mask.astype(np.uint8), kernel) > 0
                if core.any():
                    fine.append(grey[core].var())
                    coarse.append(average[core].var())
        assert np.mean(coarse) < 0.05 * np.mean(fine), name


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (dict(size=32), r'size must be at least 1\.22 x the largest'),
        (dict(num_objects=(4, 2)), 'low >= high'),
        (dict(detail=(5, 4)), 'high - low < 0'),
        (dict(tilt=-1.0), 'high - low < 0'),
        (dict(classes=('rows', 'zigzags')), "'zigzags' is no class"),
        (dict(classes=()), 'high <= 0'),
    ],
)
def test_bad_parameters(bad, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(np.random.default_rng(0), **bad)
