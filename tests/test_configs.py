"""Every shipped config builds, learns a step, predicts and counts."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope

from mmdge.engine.hooks import CostHook

CONFIGS = Path(__file__).parents[1] / 'configs'
SHIPPED = sorted(
    path
    for path in CONFIGS.rglob('*.py')
    if path.relative_to(CONFIGS).parts[0] != '_base_'
)


@pytest.mark.parametrize('path', SHIPPED, ids=lambda p: p.stem)
def test_config(path):
    from mmdet.testing import demo_mm_inputs

    assert len(path.read_text().splitlines()) < 60
    cfg = Config.fromfile(path)
    assert cfg.custom_imports['imports'] == ['mmdge']
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    model = MODELS.build(cfg.model)
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    (cost_hook,) = [hook for hook in hooks if isinstance(hook, CostHook)]
    cost_hook.attach(model)
    dynamic = 'dge' in path.stem
    assert cost_hook.budget == (0.5 if dynamic else 1.0)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator[1].type == 'mmdge.BackboneFLOPs'

    num_classes = cfg.model.bbox_head.num_classes
    batch = demo_mm_inputs(
        2, [[3, 128, 128], [3, 97, 120]], num_classes=num_classes
    )
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    total, logged = model.parse_losses(losses)
    total.backward()
    assert total.isfinite() and 'loss_budget' in logged
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without

    model.eval()
    with torch.no_grad():
        samples = model(
            **model.data_preprocessor(batch, False), mode='predict'
        )
    for sample in samples:
        cost = sample.backbone_cost
        ratio = cost['dynamic'] / cost['dense']
        if cfg.model.backbone.routing == 'learned':  # starts at 95 % finest
            assert 0.9 < ratio < 1.01
        else:
            assert 0.2 < ratio < 0.9 if dynamic else ratio == 1
