"""The data set shapes: what is written, who reads it."""

import inspect
import json

import cv2
import numpy as np
import pytest

from mmdge.datasets import CLASSES, SEM_CLASSES, draw_scene, write_shapes
from mmdge.datasets.scenes import VERSION
from mmdge.datasets.shapes import CROP_SIZE, scene_rng
from mmdge.errors import UserError

SMALL = dict(num_train=3, num_val=2, size=128, object_size=(20, 40))


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
    with pytest.raises(UserError, match='num_train is 3, wanted 2') as info:
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
        dict(num_val=0),
        dict(seed=-1),
        dict(size=32),
        dict(overlap=1.5),
        dict(classes=('rows', 'zigzags')),
    ],
)
def test_bad_parameters(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        write_shapes(tmp_path / 'no', **{**SMALL, **bad})
    assert not (tmp_path / 'no').exists()


@pytest.mark.parametrize('name', ['glow', 'rng'])
def test_unknown_parameters_are_named(name, tmp_path):
    with pytest.raises(TypeError, match=f"draw_scene.* argument '{name}'"):
        write_shapes(tmp_path / 'no', **SMALL, **{name: 1})
    assert not (tmp_path / 'no').exists()


def test_manifest_records_every_parameter(root):
    manifest = json.loads((root / 'shapes.json').read_text())
    known = dict(version=VERSION, seed=0, **SMALL)
    drawing = inspect.signature(draw_scene).parameters
    for name in set(drawing) - set(SMALL) - {'rng'}:
        known[name] = drawing[name].default
    assert manifest == json.loads(json.dumps(known))


def test_size_has_the_default_of_a_scene():
    default = [
        inspect.signature(function).parameters['size'].default
        for function in (write_shapes, draw_scene)
    ]
    assert default[0] == default[1]


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


def test_crops_show_their_object(root):
    anns = json.loads((root / 'annotations/instances_train.json').read_text())[
        'annotations'
    ]
    crops = sorted((root / 'crops/train').glob('*/*.jpg'))
    assert len(crops) == len(anns)
    sizes = {cv2.imread(str(path)).shape for path in crops}
    assert sizes == {(CROP_SIZE, CROP_SIZE, 3)}
    number = {}
    for ann in anns:
        i = number[ann['image_id']] = number.get(ann['image_id'], -1) + 1
        name = CLASSES[ann['category_id'] - 1]
        stem = f'shapes_{ann["image_id"] - 1:06d}'
        crop = cv2.imread(str(root / f'crops/train/{name}/{stem}_{i}.jpg'))
        scene = cv2.imread(str(root / f'train/{stem}.jpg'))
        left, top, width, height = map(int, ann['bbox'])
        patch = scene[top : top + height, left : left + width]
        match = cv2.matchTemplate(crop, patch, cv2.TM_SQDIFF)
        assert match.min() / patch.size < 40  # but for JPEG's losses


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
