"""Every ImageNet config trains, evaluates, and reports its FLOPs."""

import pytest

from .one_step import check, run, shipped


@pytest.mark.parametrize(
    'path', shipped('dge', '*_in1k-*'), ids=lambda p: p.stem
)
def test_config(path, imagenet, tmp_path):
    cfg, train, val = run(path, imagenet, tmp_path)
    check(path, cfg, train, val, 'accuracy/top1')
    warmup = cfg.param_scheduler[0].end
    assert warmup == (20 if 'dge-' in path.stem else 5)
