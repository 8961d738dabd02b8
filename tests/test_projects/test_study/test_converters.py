"""The converters, on sources laid out as they are published."""

import json
import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from tests.tool_runs import ROOT

CAMVID = 'projects/study/camvid.py'
BCCD = 'projects/study/bccd.py'


def error(said):
    """The one line that tells the user what is wrong."""
    (line,) = [s for s in said.splitlines() if s.startswith('error: ')]
    return line


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def camvid(tmp_path):
    """Two frames to train with, one to validate, one to test, 8 x 6 px."""
    source = tmp_path / 'CamVid'
    for part, name in (
        ('train', 'b_00030'),
        ('train', 'b_00060'),
        ('val', 'a_00010'),
        ('test', 'c_f00000'),
    ):
        frame = np.full((6, 8, 3), (0, 100, 200), np.uint8)
        labels = np.arange(48, dtype=np.uint8).reshape(6, 8) % 12
        write_png(source / part / f'{name}.png', frame)
        write_png(source / f'{part}annot' / f'{name}.png', labels)
        (source / f'{part}.txt').write_text('not read')
    return source


def test_camvid(camvid, tmp_path, tool):
    root = tmp_path / 'data' / 'camvid'
    said = tool(CAMVID, camvid, '--root', root)
    assert '4/4' in said
    assert 'wrote 3 training and 1 validation frames to ' in said
    stems = dict(
        training=['a_00010', 'b_00030', 'b_00060'], validation=['c_f00000']
    )
    assert names(root) == ['annotations', 'images']
    for split, expected in stems.items():
        images, maps = root / 'images' / split, root / 'annotations' / split
        assert names(images) == [f'{stem}.jpg' for stem in expected]
        assert names(maps) == [f'{stem}.png' for stem in expected]
    # The channels keep their order, to JPEG's rounding.
    frame = read(root / 'images/training/a_00010.jpg')
    assert np.abs(frame - np.array((0, 100, 200.0))).max() < 8
    labels = read(root / 'annotations/training/a_00010.png')
    source = read(camvid / 'valannot/a_00010.png')
    assert labels.dtype == np.uint8
    assert (labels[source == 11] == 255).all()
    assert (labels == source)[source != 11].all()


@pytest.mark.parametrize(
    ('part', 'labels', 'message'),
    [
        ('val', None, 'b.png is in one of them'),
        ('valannot', np.zeros((6, 8), np.uint8), 'b.png is in one of them'),
        ('trainannot', np.full((6, 8), 30, np.uint8), 'has the label 30'),
        ('trainannot', np.zeros((8, 6), np.uint8), r'shape (8, 6), its frame'),
        ('trainannot', np.zeros((6, 8, 3), np.uint8), 'labels are grey'),
    ],
)
def test_camvid_mistakes(part, labels, message, camvid, tmp_path, tool):
    name = 'b' if part.startswith('val') else 'b_00060'
    pixels = np.zeros((6, 8, 3), np.uint8) if labels is None else labels
    write_png(camvid / part / f'{name}.png', pixels)
    root = tmp_path / 'camvid'
    said = tool(CAMVID, camvid, '--root', root, expect=2)
    assert message in error(said)
    assert names(tmp_path) == ['CamVid']


def test_camvid_elsewhere_and_empty(camvid, tmp_path, tool):
    options = '--root', tmp_path / 'camvid'
    said = tool(CAMVID, tmp_path, *options, expect=2)
    assert 'train is not a folder; name the folder CamVid of' in error(said)
    for path in camvid.glob('test*/*'):
        path.unlink()
    said = tool(CAMVID, camvid, *options, expect=2)
    assert 'there is none' in error(said)


def write_voc(source, part, name, cells, size=(48, 64)):
    """Write one image and its annotations, and list it in a part."""
    write_image = source / 'JPEGImages' / f'{name}.jpg'
    write_png(write_image, np.zeros((*size, 3), np.uint8))
    objects = ''.join(
        f'<object><name>{label}</name><truncated>0</truncated><bndbox>'
        + ''.join(
            f'<{side}>{value}</{side}>'
            for side, value in zip(
                ('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True
            )
        )
        + '</bndbox></object>\n'
        for label, *corners in cells
    )
    path = source / 'Annotations' / f'{name}.xml'
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        '<annotation>\n<folder>JPEGImages</folder>\n'
        f'<size><width>64</width></size>\n{objects}</annotation>\n'
    )
    path = source / 'ImageSets' / 'Main' / f'{part}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(f'{name}\n')


@pytest.fixture
def bccd(tmp_path):
    source = tmp_path / 'BCCD'
    write_voc(
        source,
        'trainval',
        'Blood_0',
        [
            ('WBC', 26, 17, 49, 37),
            ('RBC', 50, 33, 50, 33),  # a click, not a cell
            ('Platelets', 1, 1, 64, 48),
        ],
    )
    write_voc(source, 'trainval', 'Blood_2', [])
    write_voc(source, 'test', 'Blood_1', [('RBC', 3, 4, 8, 10)], (32, 32))
    return source


def test_bccd(bccd, tmp_path, tool):
    root = tmp_path / 'data' / 'bccd'
    said = tool(BCCD, bccd, '--root', root)
    assert '3/3' in said
    assert 'train: 2 images, 2 boxes (1 without an area left out)' in said
    assert 'val: 1 images, 1 boxes (0 without an area left out)' in said
    assert names(root) == ['annotations', 'train', 'val']
    assert names(root / 'train') == ['Blood_0.jpg', 'Blood_2.jpg']
    image = 'JPEGImages/Blood_1.jpg'
    copy = root / 'val' / 'Blood_1.jpg'
    assert copy.read_bytes() == (bccd / image).read_bytes()
    coco = json.loads((root / 'annotations/instances_train.json').read_text())
    assert coco['images'] == [
        dict(id=1, file_name='Blood_0.jpg', height=48, width=64),
        dict(id=2, file_name='Blood_2.jpg', height=48, width=64),
    ]
    first, second = coco['annotations']
    assert first == dict(
        id=1,
        image_id=1,
        category_id=2,
        bbox=[26, 17, 23, 20],
        area=460,
        iscrowd=0,
    )
    assert (second['id'], second['category_id']) == (2, 3)
    coco = json.loads((root / 'annotations/instances_val.json').read_text())
    assert coco['images'][0]['height'] == 32
    assert coco['annotations'][0]['bbox'] == [3, 4, 5, 6]
    cfg = Config.fromfile(
        ROOT / 'projects/study/configs/retinanet_pvt_fpn_bccd-320x240.py'
    )
    classes = [category['name'] for category in coco['categories']]
    assert classes == list(cfg.metainfo.classes)
    assert [category['id'] for category in coco['categories']] == [1, 2, 3]


@pytest.mark.parametrize(
    ('path', 'text', 'message'),
    [
        ('ImageSets/Main/test.txt', None, 'missing or empty; name the folder'),
        ('ImageSets/Main/test.txt', '\n', 'missing or empty; name the folder'),
        ('JPEGImages/Blood_1.jpg', None, 'Blood_1.jpg is missing'),
        ('JPEGImages/Blood_1.jpg', 'text', 'Blood_1.jpg is not an image'),
        ('Annotations/Blood_1.xml', None, 'No such file'),
        ('Annotations/Blood_1.xml', '<annotation>', 'no element found'),
        (
            'Annotations/Blood_1.xml',
            '<a><object><name>Cell</name></object></a>',
            "boxes of RBC, WBC, Platelets in the format of Pascal VOC ('Cell'",
        ),
        (
            'Annotations/Blood_1.xml',
            '<a><object><name>RBC</name></object></a>',
            'cannot be read as boxes',
        ),
    ],
)
def test_bccd_mistakes(path, text, message, bccd, tmp_path, tool):
    if text is None:
        (bccd / path).unlink()
    else:
        (bccd / path).write_text(text)
    said = tool(BCCD, bccd, '--root', tmp_path / 'bccd', expect=2)
    assert message in error(said)
    assert names(tmp_path) == ['BCCD']


@pytest.mark.parametrize('name', ['camvid', 'bccd'])
def test_written_over_only_when_asked(name, tmp_path, tool, request):
    source = request.getfixturevalue(name)
    script = f'projects/study/{name}.py'
    command = script, source, '--root', tmp_path / 'out'
    tool(*command)
    assert 'is there already' in error(tool(*command, expect=2))
    tool(*command, '--overwrite')
    (tmp_path / 'out' / 'notes.txt').write_text('')
    said = tool(*command, '--overwrite', expect=2)
    assert 'also holds notes.txt' in error(said)


def test_real_frames_come_back(test_data, tmp_path, tool):
    data, source = test_data / 'data' / 'camvid', tmp_path / 'CamVid'
    parts = [
        ('train', 'training', '0001TP_006690'),
        ('val', 'training', '0016E5_07959'),
        ('test', 'validation', 'Seq05VD_f00000'),
    ]
    for part, split, stem in parts:
        labels = read(data / 'annotations' / split / f'{stem}.png')
        labels[labels == 255] = 11
        write_png(source / f'{part}annot' / f'{stem}.png', labels)
        frame = read(data / 'images' / split / f'{stem}.jpg')
        write_png(source / part / f'{stem}.png', frame)
    tool(CAMVID, source, '--root', tmp_path / 'out')
    for _, split, stem in parts:
        label = f'annotations/{split}/{stem}.png'
        assert (read(tmp_path / 'out' / label) == read(data / label)).all()
        image = f'images/{split}/{stem}.jpg'
        ours, theirs = (read(r / image) for r in (tmp_path / 'out', data))
        # Written as JPEG once more, and no worse for that.
        assert np.abs(ours - theirs.astype(float)).mean() < 1


def test_real_cells_come_back(test_data, tmp_path, tool):
    data, source = test_data / 'data' / 'bccd', tmp_path / 'BCCD'
    expected = {}
    for part, split in (('trainval', 'train'), ('test', 'val')):
        path = data / 'annotations' / f'instances_{split}.json'
        coco = json.loads(path.read_text())
        labels = {c['id']: c['name'] for c in coco['categories']}
        coco['images'] = coco['images'][:3]
        coco['annotations'] = [
            a for a in coco['annotations'] if a['image_id'] <= 3
        ]
        for image in coco['images']:
            cells = [
                (labels[a['category_id']], x, y, x + width, y + height)
                for a in coco['annotations']
                if a['image_id'] == image['id']
                for x, y, width, height in [a['bbox']]
            ]
            name = image['file_name'].removesuffix('.jpg')
            write_voc(source, part, name, cells)
            shutil.copy(data / split / f'{name}.jpg', source / 'JPEGImages')
        expected[split] = coco
    tool(BCCD, source, '--root', tmp_path / 'out')
    for split, coco in expected.items():
        path = tmp_path / 'out' / 'annotations' / f'instances_{split}.json'
        assert json.loads(path.read_text()) == coco
