"""Every ImageNet config trains, evaluates, and reports its FLOPs."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmdge.utils.counting import flop_counter

from .one_step import check, run, shipped


@pytest.mark.parametrize('path', shipped('*_in1k*'), ids=lambda p: p.stem)
def test_config(path, imagenet, tmp_path):
    cfg, train, val = run(path, imagenet, tmp_path)
    check(path, cfg, train, val, 'accuracy/top1')
    warmup = cfg.param_scheduler[0].end
    names = ('dge-', 'dpvt', 'swin', 'convnext')
    long = any(name in path.stem for name in names)
    assert warmup == (20 if long else 5)


def test_dynamic_vit_spends_what_its_official_code_does():
    """Which measures 2.981 G, and 4.599 G dense, at 224 px, with the head."""
    (path,) = shipped('dynamic-vit-s_8xb128_in1k')
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad(), flop_counter() as counter:
        model(torch.rand(1, 3, 224, 224), mode='tensor')
    cost, head = model.backbone.cost, 384 * 1000
    assert cost.dynamic.item() + head == counter.get_total_flops() / 2
    assert cost.dynamic.item() + head == pytest.approx(2.981e9, abs=5e5)
    assert cost.dense.item() + head == pytest.approx(4.599e9, abs=5e5)
    # What the log holds the ratio against.
    budget = cfg.default_hooks.cost.budget
    assert cost.ratio.item() == pytest.approx(budget, abs=0.005)


def test_dynamic_vit_trains_its_predictors_a_hundred_times_faster():
    (path,) = shipped('dynamic-vit-s_8xb128_in1k')
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(group['params'][0])]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
    }
    for name, (lr, decay) in groups.items():
        if 'score_predictor' in name:
            assert lr == pytest.approx(1e-3)
        elif name.endswith(('cls_token', 'pos_embed')):
            assert lr == 0
        else:
            assert lr == 1e-5
            assert bool(decay) == (model.get_parameter(name).dim() > 1)
