"""What the README tells users to paste works when pasted."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmdge

README = Path(__file__).parents[1] / 'README.md'


@pytest.mark.parametrize(
    'base',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    ],
)
def test_the_entries_turn_a_config_dynamic(base, tmp_path):
    from mmdet.testing import demo_mm_inputs

    blocks = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    path = tmp_path / 'mine.py'
    path.write_text('\n'.join([f'_base_ = {base!r}', *blocks]))
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None  # no download
    model = MODELS.build(cfg.model)
    hook = dict(cfg.default_hooks.cost)
    assert hook.pop('type') == 'mmdge.CostHook'
    mmdge.CostHook(**hook).attach(model)

    batch = demo_mm_inputs(1, [[3, 128, 128]], with_mask=True)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total, logged = model.parse_losses(losses)
    assert total.isfinite() and 'flops_ratio' in logged
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch, False)
        (sample,) = model(**data, mode='predict')
    assert sample.backbone_cost['dynamic'] < sample.backbone_cost['dense']
