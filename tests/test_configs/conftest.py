"""Tiny data sets in the layouts that the configs expect."""

import json
import shutil

import pytest

from mmdge.datasets import CLASSES, write_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    write_shapes(root, num_train=4, num_val=2, size=128, num_objects=(3, 5))
    return root


@pytest.fixture(scope='session')
def coco(shapes, tmp_path_factory):
    datasets = pytest.importorskip('mmdet.datasets')
    classes = datasets.CocoDataset.METAINFO['classes']
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    for split in ('train', 'val'):
        shutil.copytree(shapes / split, root / f'{split}2017')
        path = shapes / 'annotations' / f'instances_{split}.json'
        content = json.loads(path.read_text())
        content['categories'] = [
            dict(id=i, name=name) for i, name in enumerate(classes, 1)
        ]
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope='session')
def ade(shapes, tmp_path_factory):
    root = tmp_path_factory.mktemp('ade')
    for split, name in (('train', 'training'), ('val', 'validation')):
        shutil.copytree(shapes / split, root / 'images' / name)
        shutil.copytree(
            shapes / 'semantic' / split, root / 'annotations' / name
        )
    return root


@pytest.fixture(scope='session')
def imagenet(shapes, tmp_path_factory):
    root = tmp_path_factory.mktemp('imagenet')
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        shutil.copytree(shapes / 'crops' / split, root / split)
        lines = [
            f'{name}/{path.name} {label}'
            for label, name in enumerate(CLASSES)
            for path in sorted((root / split / name).iterdir())
        ]
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    return root
