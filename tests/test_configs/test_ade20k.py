"""Every ADE20K config trains, evaluates, and reports its FLOPs."""

import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from .one_step import check, run, shipped


@pytest.mark.parametrize('path', shipped('*_ade20k-*'), ids=lambda p: p.stem)
def test_config(path, ade, tmp_path):
    cfg, train, val = run(path, ade, tmp_path)
    check(path, cfg, train, val, 'mIoU')
    assert cfg.model.decode_head.num_classes == 150


def test_views_of_an_augmented_test_leave_no_border_out(ade):
    transforms = pytest.importorskip('mmseg.datasets.transforms')
    cfg = Config.fromfile(shipped('*_ade20k-*')[0])
    assert transforms and cfg.tta_model.type == 'SegTTAModel'
    init_default_scope('mmseg')
    views = Compose(cfg.tta_pipeline)(
        dict(
            img_path=str(ade / 'images/validation/shapes_000000.jpg'),
            seg_map_path=str(ade / 'annotations/validation/shapes_000000.png'),
            seg_fields=[],
            reduce_zero_label=True,
        )
    )['inputs']
    assert len(views) == 12
    sides = {side for view in views for side in view.shape[1:]}
    assert len(sides) == 6 and all(side % 32 == 0 for side in sides)
