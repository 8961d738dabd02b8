"""Every shapes config trains, evaluates, and reports its FLOPs."""

import pytest
from mmengine.config import Config

from .one_step import check, run, shipped


def metric(path):
    if path.stem.endswith('crops'):
        return 'accuracy/top1'
    return 'mIoU' if path.stem.startswith('fpn_') else 'coco/bbox_mAP'


@pytest.mark.parametrize(
    'path', shipped(folder='shapes'), ids=lambda p: p.stem
)
def test_config(path, shapes, tmp_path):
    crops = path.stem.endswith('crops')
    root = shapes / 'crops' if crops else shapes
    cfg, train, val = run(path, root, tmp_path)
    check(path, cfg, train, val, metric(path))
    assert ('coco/segm_mAP' in val) == path.stem.startswith('mask-rcnn')


def test_every_config_is_tested():
    tested = [
        *shipped(folder='shapes'),
        *(p for end in ('coco', 'ade20k-*', 'in1k*')
          for p in shipped(f'*_{end}')),
    ]  # fmt: skip
    assert sorted(tested) == shipped()


def test_configs_are_short_and_their_evaluators_plain():
    for path in shipped() + shipped('**/*', '_base_'):
        text = path.read_text()
        assert len(text.splitlines()) < 60, path
        assert 'BackboneFLOPs' not in text, path


DYNAMIC = [p for p in shipped() if 'dge-' in p.stem or 'dynamic-' in p.stem]


@pytest.mark.parametrize('path', DYNAMIC, ids=lambda p: p.stem)
def test_a_dynamic_config_is_its_dense_twin_and_two_entries(path):
    stem = path.stem.replace('dge-', '').replace('dynamic-vit', 'deit')
    stem = stem.replace('dynamic-', '')
    for arm in ('-learned', '-random', '-ranked', '_exact-resume'):
        stem = stem.replace(arm, '')
    (twin,) = shipped(stem)
    cfg, twin = Config.fromfile(path), Config.fromfile(twin)
    # What comes with a method: its schedule, and how a training is repeated.
    free = {'optim_wrapper', 'param_scheduler', 'train_cfg', 'max_epochs'}
    if 'exact-resume' in path.stem:
        free |= {'randomness', 'train_dataloader'}
    changed = {
        key for key in {*cfg, *twin} if cfg.get(key) != twin.get(key)
    } - free
    assert changed <= {'model', 'default_hooks', 'share'}
    cfg.model.backbone = twin.model.backbone = None
    assert cfg.model == twin.model
