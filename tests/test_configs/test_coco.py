"""Every COCO config trains, evaluates, and reports its FLOPs."""

import pytest

from .one_step import check, run, shipped


@pytest.mark.parametrize('path', shipped('*_coco'), ids=lambda p: p.stem)
def test_config(path, coco, tmp_path):
    cfg, train, val = run(path, coco, tmp_path)
    check(path, cfg, train, val, 'coco/bbox_mAP')
    assert ('coco/segm_mAP' in val) == path.stem.startswith('mask-rcnn')
    assert ('loss_mask' in train) == path.stem.startswith('mask-rcnn')
