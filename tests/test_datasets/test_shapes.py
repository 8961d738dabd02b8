"""The data set shapes: what is drawn, what is written, who reads it."""

import json

import cv2
import numpy as np
import pytest

from mmdge.datasets import CLASSES, SEM_CLASSES, draw_scene, write_shapes
from mmdge.datasets.shapes import scene_rng

SMALL = dict(num_train=3, num_val=2, size=128, object_size=(20, 40))


def scenes(count, **kwargs):
    return [
        draw_scene(scene_rng(0, 'train', i), **kwargs) for i in range(count)
    ]


def files(root):
    """Return every file below a folder as {relative path: bytes}."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    assert write_shapes(root, **SMALL)
    return root


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


def test_same_seed_same_bytes(root, tmp_path):
    write_shapes(tmp_path / 'again', **SMALL)
    assert files(tmp_path / 'again') == files(root)
    write_shapes(tmp_path / 'other', **SMALL, seed=1)
    image = 'train/shapes_000000.jpg'
    assert files(tmp_path / 'other')[image] != files(root)[image]


def test_scene_does_not_depend_on_the_count(root, tmp_path):
    write_shapes(tmp_path, **{**SMALL, 'num_train': 1})
    old, new = files(root), files(tmp_path)
    for name in new:
        if name.endswith(('.jpg', '.png')):
            assert new[name] == old[name]
    assert old['train/shapes_000000.jpg'] != old['val/shapes_000000.jpg']


def test_drawn_once(root):
    image = root / 'train/shapes_000000.jpg'
    before = image.stat().st_mtime_ns
    assert not write_shapes(root, **SMALL)
    assert image.stat().st_mtime_ns == before


def test_other_parameters_are_refused_then_forced(tmp_path):
    write_shapes(tmp_path, **SMALL)
    other = {**SMALL, 'num_train': 2, 'detail': (3, 3)}
    with pytest.raises(ValueError, match='num_train is 3, wanted 2') as info:
        write_shapes(tmp_path, **other)
    assert 'detail' in str(info.value) and '--overwrite' in str(info.value)
    assert 'num_val' not in str(info.value)
    (tmp_path / 'train/mine.jpg').write_bytes(b'')
    assert write_shapes(tmp_path, **other, overwrite=True)
    names = sorted(path.name for path in (tmp_path / 'train').iterdir())
    # What is left of the larger drawing is gone, other files are not.
    assert names == ['mine.jpg', 'shapes_000000.jpg', 'shapes_000001.jpg']


def test_interrupted_drawing_is_done_again(root, tmp_path):
    def stop(indices):
        yield indices[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path, **SMALL, progress=stop)
    assert (tmp_path / 'train/shapes_000000.jpg').exists()
    assert not (tmp_path / 'shapes.json').exists()
    assert write_shapes(tmp_path, **SMALL)
    assert files(tmp_path) == files(root)
    # An overwriting that is interrupted leaves no manifest either.
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path, **SMALL, overwrite=True, progress=stop)
    assert not (tmp_path / 'shapes.json').exists()


@pytest.mark.parametrize(
    'bad',
    [
        dict(num_train=0),
        dict(seed=-1),
        dict(size=32),
        dict(num_objects=(4, 2)),
        dict(object_size=(4, 20)),
        dict(detail=(0, 4)),
        dict(distractors=(-1, 2)),
        dict(tilt=-1.0),
        dict(overlap=1.5),
        dict(classes=('rows', 'zigzags')),
        dict(classes=()),
    ],
)
def test_bad_parameters(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        write_shapes(tmp_path / 'no', **{**SMALL, **bad})
    assert not (tmp_path / 'no').exists()


def test_coco_file(root):
    coco_api = pytest.importorskip('pycocotools.coco')
    coco = coco_api.COCO(root / 'annotations/instances_train.json')
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == [*CLASSES]
    assert coco.getImgIds() == [1, 2, 3]
    for i in range(3):
        scene = draw_scene(
            scene_rng(0, 'train', i), size=128, object_size=(20, 40)
        )
        anns = coco.loadAnns(coco.getAnnIds(i + 1))
        assert len(anns) == len(scene.labels)
        for ann, box, label, mask in zip(
            anns, scene.boxes, scene.labels, scene.masks, strict=True
        ):
            np.testing.assert_array_equal(coco.annToMask(ann), mask)
            assert ann['category_id'] == label + 1
            assert ann['area'] == mask.sum() and ann['iscrowd'] == 0
            assert ann['bbox'] == [*box[:2], *(box[2:] - box[:2])]
    manifest = json.loads((root / 'shapes.json').read_text())
    assert manifest['num_train'] == 3 and manifest['size'] == 128


def test_mmdet_reads_it(root):
    datasets = pytest.importorskip('mmdet.datasets')
    transforms = pytest.importorskip('mmdet.datasets.transforms')
    mmcv = pytest.importorskip('mmcv')
    data = datasets.CocoDataset(
        data_root=str(root),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
    )
    read = mmcv.transforms.LoadImageFromFile()
    load = transforms.LoadAnnotations(with_bbox=True, with_mask=True)
    assert len(data) == 3
    for i in range(3):
        scene = draw_scene(
            scene_rng(0, 'train', i), size=128, object_size=(20, 40)
        )
        found = load(read(data.get_data_info(i)))
        np.testing.assert_array_equal(
            found['gt_bboxes'].tensor.numpy(), scene.boxes
        )
        np.testing.assert_array_equal(found['gt_bboxes_labels'], scene.labels)
        np.testing.assert_array_equal(
            found['gt_masks'].to_ndarray(), scene.masks
        )
        image = found['img'][..., ::-1]  # mmcv reads BGR
        gap = abs(image.astype(float) - scene.image).mean()
        assert gap < 3


def test_mmseg_reads_it(root):
    datasets = pytest.importorskip('mmseg.datasets')
    transforms = pytest.importorskip('mmseg.datasets.transforms')
    data = datasets.BaseSegDataset(
        data_root=str(root),
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        metainfo=dict(classes=SEM_CLASSES),
    )
    assert len(data) == 2
    for i in range(2):
        scene = draw_scene(
            scene_rng(0, 'val', i), size=128, object_size=(20, 40)
        )
        found = transforms.LoadAnnotations()(data.get_data_info(i))
        np.testing.assert_array_equal(found['gt_seg_map'], scene.semantic)
