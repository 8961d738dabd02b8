"""Every ADE20K config trains, evaluates, and reports its FLOPs."""

import pytest

from .one_step import check, run, shipped


@pytest.mark.parametrize(
    'path', shipped('dge', '*_ade20k-*'), ids=lambda p: p.stem
)
def test_config(path, ade, tmp_path):
    cfg, train, val = run(path, ade, tmp_path)
    check(path, cfg, train, val, 'mIoU')
    assert cfg.model.decode_head.num_classes == 150
