"""Every config of the study trains, evaluates, and reports its FLOPs."""

import shutil

import pytest

from tests.test_configs.one_step import check, run
from tests.tool_runs import ROOT

CONFIGS = sorted((ROOT / 'projects/study/configs').glob('*.py'))


def data(path, request, tmp_path):
    """A small part of what a config trains on."""
    if 'shapes' in path.stem:
        return request.getfixturevalue('shapes')
    test_data = request.getfixturevalue('test_data') / 'data'
    for name in ('bccd', 'coco_tiny'):
        if name.replace('_', '-') in path.stem:
            return test_data / name
    # For two images the whole folder would be listed, and two are enough.
    root = tmp_path / 'camvid'
    for split in ('training', 'validation'):
        for kind, end in (('images', '.jpg'), ('annotations', '.png')):
            folder = test_data / 'camvid' / kind / split
            (root / kind / split).mkdir(parents=True)
            for file in sorted(folder.glob(f'*{end}'))[:2]:
                shutil.copy(file, root / kind / split)
    return root


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config(path, request, tmp_path):
    root = data(path, request, tmp_path)
    cfg, train, val = run(path, root, tmp_path / 'run')
    semantic = path.stem.startswith(('fpn_', 'linear_'))
    check(path, cfg, train, val, 'mIoU' if semantic else 'coco/bbox_mAP')
    assert ('coco/segm_mAP' in val) == path.stem.startswith('mask-rcnn')
    assert cfg.model.backbone.routing == 'finest'  # arms are made from it
