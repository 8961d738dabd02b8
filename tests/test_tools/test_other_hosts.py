"""Real runs of the tools, through mmseg and mmpretrain, on small data.

What a host of its own kind needs (loops by iteration, a cls token, a metric
without a prefix) is in the configs of ``tests/data``.
"""

import json
import re

import cv2
import pytest

from mmdge.datasets import CLASSES, write_shapes
from tests.tool_runs import figures, metrics, python

HOSTS = {
    'mmseg': ('semantic_fpn_dge-pvt_shapes', 'iter_3.pth', 'mIoU'),
    'mmpretrain': ('dge-pvt_shapes-crops', 'epoch_1.pth', 'accuracy/top1'),
}


def cut_out(shapes, root):
    """Write every object of shapes as a picture, in a folder per class."""
    for split in ('train', 'val'):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
        path = shapes / 'annotations' / f'instances_{split}.json'
        coco = json.loads(path.read_text())
        files = {image['id']: image['file_name'] for image in coco['images']}
        for ann in coco['annotations']:
            file = files[ann['image_id']]
            left, top, width, height = map(int, ann['bbox'])
            image = cv2.imread(str(shapes / split / file))
            crop = image[top : top + height, left : left + width]
            folder = root / split / CLASSES[ann['category_id'] - 1]
            cv2.imwrite(str(folder / f'{ann["id"]}.png'), crop)


@pytest.fixture(scope='module', params=HOSTS)
def trained(request, tmp_path_factory):
    """Train: the host's name, its options, the work dir and the log."""
    config, _, _ = HOSTS[request.param]
    data = tmp_path_factory.mktemp('shapes')
    write_shapes(data, num_train=8, num_val=5, size=128)
    if request.param == 'mmpretrain':
        shapes, data = data, tmp_path_factory.mktemp('crops')
        cut_out(shapes, data)
    options = ['--cfg-options'] + [
        f'{split}_dataloader.dataset.data_root={data}/'
        for split in ('train', 'val', 'test')
    ]
    work_dir = tmp_path_factory.mktemp('train')
    log = python(
        'tools/train.py',
        f'tests/data/{config}.py',
        '--work-dir',
        work_dir,
        *options,
    )
    return request.param, options, work_dir, log


def evaluate(trained, work_dir, *more):
    """Test the trained checkpoint and return its entries."""
    host, options, trained_in, _ = trained
    config, checkpoint, _ = HOSTS[host]
    python(
        'tools/test.py',
        f'tests/data/{config}.py',
        trained_in / checkpoint,
        '--work-dir',
        work_dir,
        *options,
        *more,
    )
    return metrics(work_dir, 'test')


@pytest.mark.slow
def test_training_logs_cost_and_metric_in_one_line(trained):
    host, _, work_dir, log = trained
    _, _, metric = HOSTS[host]
    assert re.search(r'\(train\).*flops_ratio: .*region_spread: ', log)
    (line,) = re.findall(r'\(val\).*backbone/GFLOPs: .*', log)
    assert f' {metric}: ' in line
    assert {metric, 'backbone/GFLOPs'} <= metrics(work_dir, 'val').keys()
    assert list(work_dir.glob('2*/vis_data/vis_image/granularity_*.png'))


@pytest.mark.slow
def test_test_repeats_the_metric_to_the_last_digit(trained, tmp_path):
    host, _, work_dir, _ = trained
    expected = figures(metrics(work_dir, 'val'))
    assert HOSTS[host][-1] in expected
    assert expected['backbone/FLOPs_ratio'] < 1
    assert figures(evaluate(trained, tmp_path)) == expected


@pytest.mark.slow
def test_dense_twin_has_ratio_one(trained, tmp_path):
    twin = evaluate(trained, tmp_path, 'model.backbone.routing=finest')
    assert twin['backbone/FLOPs_ratio'] == 1
    assert twin['backbone/GFLOPs'] == twin['backbone/GFLOPs_dense']
    expected = metrics(trained[2], 'val')
    dense = 'backbone/GFLOPs_dense'
    assert twin[dense] == pytest.approx(expected[dense], rel=1e-12)
