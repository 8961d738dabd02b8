"""Where routing hurts, drawn."""

import re

import cv2
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdge.datasets import image_loader
from tests.tool_runs import ROOT, SHAPES, data_options, functions_of

TOOL = 'projects/study/show_cases.py'


@pytest.mark.parametrize('host', SHAPES)
def test_cases(tool, random_model, shapes, tmp_path, host):
    _, weights = random_model(SHAPES[host])
    out = tmp_path / 'cases.png'
    said = tool(
        TOOL,
        *(SHAPES[host], weights, '--out', out, '--num-cases', 1),
        *('--num-images', 3, '--cfg-options', *data_options(host, shapes)),
    )
    rise, p5, p95 = (
        float(re.search(rf'{name} (-?[\d.]+)', said)[1])
        for name in ('rises by', 'p5', 'p95')
    )
    assert p5 <= rise <= p95 and p5 < p95
    height, width, _ = cv2.imread(str(out)).shape
    assert width > height > 400  # two images, one below the other


@pytest.mark.parametrize(
    ('config', 'host'),
    [
        ('configs/shapes/fpn_dge-pvt_shapes.py', 'mmseg'),
        ('configs/shapes/mask-rcnn_dge-pvt_fpn_shapes.py', 'mmdet'),
    ],
)
def test_without_routing_nothing_rises(
    tool, random_model, shapes, tmp_path, config, host
):
    """Also where the losses are those of samples."""
    _, weights = random_model(config)
    options = ['--num-images', 2, '--cfg-options']
    options += ['model.backbone.routing=finest']
    said = tool(
        TOOL,
        *(config, weights, '--out', tmp_path / 'x.png', *options),
        *data_options(host, shapes),
    )
    assert 'rises by 0.0000' in said


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_annotations_are_resized_with_the_image(host, shapes):
    """Or the losses would compare other places."""
    cfg = Config.fromfile(ROOT / SHAPES[host])
    cfg.merge_from_dict(
        dict(option.split('=') for option in data_options(host, shapes))
    )
    resize = dict(type='Resize', scale=(64, 64))
    steps = cfg.val_dataloader.dataset.pipeline
    steps = [step for step in steps if step['type'] != 'Resize']
    cfg.val_dataloader.dataset.pipeline = [steps[0], resize, *steps[1:]]
    init_default_scope(cfg.default_scope)
    functions_of(TOOL).annotate_first(cfg)
    data = next(iter(image_loader(cfg)))
    (sample,) = data['data_samples']
    assert sample.img_shape == (64, 64)
    if host == 'mmseg':
        assert sample.gt_sem_seg.shape == (64, 64)
    else:
        assert sample.gt_instances.bboxes.tensor.max() <= 64


def test_mistakes(tool, random_model, shapes, tmp_path):
    config = SHAPES['mmseg']
    _, weights = random_model(config)
    said = tool(
        TOOL,
        *(config, weights, '--out', tmp_path / 'no/x.png'),
        expect=2,
    )
    assert 'there is no such folder' in said
