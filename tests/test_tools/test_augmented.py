"""What tools/test.py needs for test-time augmentation, and what it writes."""

import pickle
import sys

import pytest
import torch
from mmdet.models import RetinaNet
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from pycocotools import mask as coco_mask

from mmdge.datasets import write_shapes
from mmdge.utils import UserError
from tests.tool_runs import (
    ON_CPU,
    ROOT,
    SHAPES,
    data_options,
    functions_of,
    run,
)

MASK_RCNN = 'configs/shapes/mask-rcnn_dge-pvt_fpn_shapes.py'


@pytest.fixture(scope='module')
def script():
    return functions_of('tools/test.py')


def load(path):
    return Config.fromfile(ROOT / path)


def test_a_config_without_what_it_needs_is_named(script):
    with pytest.raises(UserError, match='tta_model and tta_pipeline'):
        script.augment(load(SHAPES['mmseg']))
    with pytest.raises(UserError, match='cannot merge masks'):
        script.augment(load(MASK_RCNN))


def test_every_data_set_gets_the_views(script):
    cfg = load(SHAPES['mmdet'])
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[inner, dict(inner)]
    )
    script.augment(cfg)
    assert cfg.model.type == 'DetTTAModel'
    for dataset in cfg.test_dataloader.dataset.datasets:
        views = dataset.pipeline[-1]
        assert views.type == 'TestTimeAug'
        # The first view's sample is kept: it is not the flipped one.
        assert [flip.prob for flip in views.transforms[0]] == [0.0, 1.0]


@pytest.mark.parametrize('scope', [None, 'missing'])
@pytest.mark.parametrize('kind', [RetinaNet, 'mmdet.RetinaNet'])
def test_the_model_says_whose_it_is(script, kind, scope):
    """Where the config has no default scope, as in pure Python."""
    cfg = load(SHAPES['mmdet'])
    cfg.model.type, cfg.default_scope = kind, scope
    if scope:
        cfg.pop('default_scope')
    script.augment(cfg)
    assert cfg.model.type == 'DetTTAModel' and cfg.default_scope == 'mmdet'
    init_default_scope('mmdet')
    assert isinstance(MODELS.build(cfg.model).module, RetinaNet)
    (flipped, _), (pack,) = cfg.test_dataloader.dataset.pipeline[-1].transforms
    assert flipped.type == 'mmdet.RandomFlip'
    assert pack.type == 'mmdet.PackDetInputs'


def test_the_configs_own_augmentation_comes_first(script):
    cfg = load(SHAPES['mmpretrain'])
    cfg.tta_model = dict(type='Mine', x=1)
    cfg.tta_pipeline = [dict(type='Views')]
    script.augment(cfg)
    assert cfg.model.type == 'Mine' and cfg.model.x == 1
    assert cfg.model.module.type == 'ImageClassifier'
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline


@pytest.mark.slow
def test_masks_of_two_processes_are_written(tmp_path):
    write_shapes(tmp_path / 'shapes', num_train=1, num_val=3, size=128)
    cfg = load(MASK_RCNN)
    init_default_scope('mmdet')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'any.pth')
    run(
        *('bash', 'tools/dist_test.sh', MASK_RCNN, tmp_path / 'any.pth', 2),
        *('--work-dir', tmp_path, '--out', tmp_path / 'out.pkl'),
        *('--cfg-options', *data_options('mmdet', tmp_path / 'shapes')),
        'model.test_cfg.rcnn.score_thr=0.001',
        PYTHON=sys.executable,
        **ON_CPU,
    )
    with (tmp_path / 'out.pkl').open('rb') as file:
        samples = pickle.load(file)
    assert len(samples) == 3
    for sample in samples:
        masks = sample['pred_instances']['masks']
        assert len(masks) == len(sample['pred_instances']['scores']) > 0
        assert coco_mask.decode(masks[0]).shape == sample['ori_shape']
