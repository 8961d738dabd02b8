"""Configs that users have from version 0.1 go on as they did."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmdge.utils import launch

from .one_step import CONFIGS, run, shipped

OLD = Path(__file__).parents[1] / 'data' / 'config_0.1.py'
LOSSES = {'loss', 'loss_cls', 'loss_bbox', 'loss_budget'}
TRAINING = LOSSES | {
    *('flops_ratio', 'flops_ratio_std', 'region_spread', 'grad_norm', 'lr'),
    *('data_time', 'time', 'epoch', 'iter', 'step'),
}
METRICS = {
    *(f'coco/bbox_mAP{end}' for end in ('', '_50', '_75', '_s', '_m', '_l')),
    *(
        f'backbone/{name}{end}'
        for name in ('GFLOPs', 'FLOPs_ratio')
        for end in ('', '_std', '_p5', '_p95')
    ),
    *('backbone/GFLOPs_dense', 'backbone/region_spread'),
}


def test_a_whole_config(shapes, tmp_path):
    cfg, train, val = run(OLD, shapes, tmp_path)
    assert 'cost' not in cfg.default_hooks and len(cfg.custom_hooks) == 3
    assert set(train) == TRAINING
    assert set(val) == METRICS | {'data_time', 'time', 'step'}
    assert train['flops_ratio'] == 1 and train['loss_budget'] == 0
    assert 0.2 < val['backbone/FLOPs_ratio'] < 0.9
    assert list(tmp_path.glob('*/vis_data/vis_image/granularity_1.png'))
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_bases_are_listed_as_they_were(tmp_path):
    """A runtime and mmdge_runtime.py beside each other, and what it names."""
    (static,) = shipped('retinanet_pvt_fpn_shapes')
    bases = [
        *('models/retinanet_pvt_shapes', 'datasets/shapes_detection'),
        *('schedules/shapes', 'det_runtime', 'mmdge_runtime'),
    ]
    listed = tmp_path / 'listed.py'
    listed.write_text(
        f'_base_ = {[str(CONFIGS / "_base_" / f"{b}.py") for b in bases]}'
    )
    cfg = Config.fromfile(listed)
    assert [hook.type for hook in cfg.custom_hooks] == [
        'mmdge.CostHook',
        'mmdge.GranularityVisHook',
    ]
    for base in (listed, static):
        for name, weight in (
            ('dge_hooks', 0.0),
            ('shapes_dge_hooks', 0.0),
            ('dge_learned_hooks', 1.0),
        ):
            path = tmp_path / f'{name}.py'
            path.write_text(
                f'_base_ = {str(base)!r}\n'
                f'custom_hooks = {{{{_base_.{name}}}}}\n'
            )
            hook, *others = Config.fromfile(path).custom_hooks
            assert hook.type == 'mmdge.CostHook' and others
            assert hook.budget == 0.5 and hook.loss_weight == weight


def test_beside_a_hosts_config(tmp_path):
    pytest.importorskip('mmdet')
    path = tmp_path / 'mine.py'
    runtime = str(CONFIGS / '_base_' / 'mmdge_runtime.py')
    path.write_text(
        f"_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', "
        f'{runtime!r}]\n'
        'custom_hooks = {{_base_.dge_hooks}}\n'
    )
    cfg = Config.fromfile(path)
    assert cfg.custom_imports.imports == ['mmdge']
    assert len(launch.hooks_of(cfg)) == len(cfg.default_hooks) + 3


def test_of_two_cost_hooks_the_users_own_counts_once(shapes, tmp_path):
    """The base's is a default hook; both are there, and one is in force."""
    (base,) = shipped('retinanet_dge-pvt-learned_fpn_shapes')
    path = tmp_path / 'mine.py'
    path.write_text(
        f'_base_ = {str(base)!r}\n'
        "own = dict(type='mmdge.CostHook', budget=0.3, loss_weight=2.0)\n"
        'custom_hooks = [own]\n'
    )
    cfg, train, val = run(path, shapes, tmp_path / 'run')
    assert cfg.default_hooks.cost.budget == 0.5
    expected = 2.0 * (train['flops_ratio'] - 0.3) ** 2
    assert train['loss_budget'] == pytest.approx(expected, rel=1e-4)
    losses = [value for key, value in train.items() if key[:5] == 'loss_']
    assert train['loss'] == pytest.approx(sum(losses), rel=1e-4)
    assert set(val) >= METRICS
    (log,) = (tmp_path / 'run').glob('*/*.log')
    said = [line for line in log.read_text().splitlines() if 'spends' in line]
    assert len(said) == 1 and 'the budget is 0.3' in said[0]
