"""Every shapes config trains, evaluates, and reports its FLOPs."""

import pytest

from .one_step import check, run, shipped


def metric(path):
    if path.stem.endswith('crops'):
        return 'accuracy/top1'
    return 'mIoU' if path.stem.startswith('fpn_') else 'coco/bbox_mAP'


@pytest.mark.parametrize('path', shipped('shapes'), ids=lambda p: p.stem)
def test_config(path, shapes, tmp_path):
    crops = path.stem.endswith('crops')
    root = shapes / 'crops' if crops else shapes
    cfg, train, val = run(path, root, tmp_path)
    check(path, cfg, train, val, metric(path))
    assert ('coco/segm_mAP' in val) == path.stem.startswith('mask-rcnn')


def test_every_config_is_tested():
    tested = [
        *shipped('shapes'),
        *shipped('study'),
        *(p for end in ('coco', 'ade20k-*', 'in1k-*')
          for p in shipped('dge', f'*_{end}')),
    ]  # fmt: skip
    all_there = shipped('.', '[!_]*/*')
    assert sorted(tested) == all_there
    for path in tested:
        if 'dge-' in path.stem:  # its dense twin stands beside it
            stem = path.stem.replace('dge-', '')
            for arm in ('-learned', '-random', '-ranked', '_exact-resume'):
                stem = stem.replace(arm, '')
            assert path.with_stem(stem).is_file()
