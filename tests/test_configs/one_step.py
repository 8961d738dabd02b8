"""Run a shipped config for one iteration and one evaluation."""

import json
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmdge.models.architectures import ViT, backbone_class
from mmdge.models.methods import FastPath, Pruning
from mmdge.utils import checks, launch

CONFIGS = Path(__file__).parents[2] / 'configs'
SIDE = 96


def shipped(pattern='*', folder='[!_]*'):
    """The configs whose names match, of all folders or one."""
    return sorted(CONFIGS.glob(f'{folder}/{pattern}.py'))


def run(path, data_root, work_dir):
    """Train a step, evaluate an image; nothing but sizes and depth is changed.

    Returns:
        tuple[Config, dict, dict]: The config, the training's and the
        evaluation's entries of the log.
    """
    cfg = launch.load_config(path, work_dir=work_dir)
    assert cfg.custom_imports['imports'] == ['mmdge']
    assert cfg.val_evaluator == cfg.test_evaluator
    # No download; where a config has weights, its training starts from them.
    cfg.model.backbone.init_cfg = cfg.load_from = None
    if 'distill' in cfg.default_hooks:
        cfg.default_hooks.distill.teacher = None
    make_shallow(cfg.model.backbone)
    # MMEngine hands out loggers and visualizers by name.
    cfg.experiment_name = f'{work_dir.name}_{path.stem}'
    cfg.visualizer.name = cfg.experiment_name
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.save_optimizer = False  # slow to write
    if cfg.train_cfg.get('type') == 'IterBasedTrainLoop':
        cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 1
    else:
        for schedule in cfg.param_scheduler:
            schedule.setdefault('end', cfg.train_cfg.max_epochs)
        cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = 1
    for split, size in (('train', 2), ('val', 1)):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=size, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=f'{data_root}/', indices=size)
        for step in loader.dataset.pipeline:
            shrink(step)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    for evaluator in cfg.val_evaluator:
        if 'ann_file' in evaluator:
            name = Path(evaluator.ann_file).name
            evaluator.ann_file = str(data_root / 'annotations' / name)
    # Untrained, nothing is sure; without a detection there is no metric. And
    # a few proposals do.
    few = dict(score_thr=0.0, nms_pre=20, max_per_img=20, num=16)
    for name in ('train_cfg', 'test_cfg'):
        for _, part in checks.walk(cfg.model.get(name)):
            part.update({k: v for k, v in few.items() if k in part})
    launch.do_without_amp(cfg)
    runner = launch.build_runner(cfg)
    with_gradient = record_gradients(runner)
    runner.train()
    trained = {
        n for n, p in runner.model.named_parameters() if p.requires_grad
    }
    assert with_gradient == trained

    (log,) = work_dir.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    (train,) = [entry for entry in entries if 'loss' in entry]
    (val,) = [entry for entry in entries if 'backbone/GFLOPs' in entry]
    return cfg, train, val


def make_shallow(backbone):
    """Leave one block of each stage, which saves most of the time.

    Where tokens are decided on, that is before all blocks but the first.
    """
    if isinstance(backbone.arch, str):
        family = backbone_class(backbone)
        arch = family.arch_zoo[backbone.arch]
        name = 'depths' if 'depths' in arch else 'num_layers'
        depth = 1 if issubclass(family, ViT) else (1, 1, 1, 1)
        if issubclass(family, Pruning):
            backbone.pruning_loc, depth = (1, 2, 3), 4
        elif issubclass(family, FastPath):
            backbone.pruning_loc, depth = (1,), (1, 1, 2, 1)
        backbone.arch = {**arch, name: depth}
        if backbone.get('frozen_stages', 0) > 0:
            backbone.frozen_stages = 1


def shrink(step):
    """Make every size in a pipeline's step small."""
    for key, value in step.items():
        if key in ('scale', 'crop_size'):
            step[key] = SIDE if isinstance(value, int) else (SIDE, SIDE)
        elif key == 'scales':
            step[key] = [(SIDE, SIDE)]
        elif isinstance(value, list):
            for part in value:
                parts = part if isinstance(part, list) else [part]
                for inner in parts:
                    if isinstance(inner, dict):
                        shrink(inner)


def record_gradients(runner: Runner) -> set[str]:
    """The names of the parameters that get a gradient, as they do."""
    names = set()
    for name, parameter in runner.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda _, name=name: names.add(name)
            )
    return names


def check(path: Path, cfg: Config, train: dict, val: dict, metric: str):
    """The realised ratio, the metric and the FLOPs stand where they belong."""
    hooks, backbone = cfg.default_hooks, cfg.model.backbone
    assert hooks.checkpoint.type == 'mmdge.SafeCheckpointHook'
    assert hooks.cost.type == 'mmdge.CostHook'
    assert hooks.granularity.type == 'mmdge.GranularityVisHook'
    assert not cfg.get('custom_hooks')
    assert metric in val
    assert train['loss'] > 0 and 'loss_budget' in train
    gflops = val['backbone/GFLOPs'], val['backbone/GFLOPs_dense']
    ratio = val['backbone/FLOPs_ratio']
    taught = {key for key in train if key.startswith('loss_distill_')}
    assert len(taught) == len(hooks.get('distill', {}).get('targets', ()))
    if 'dynamic-' in path.stem:
        assert backbone.type.startswith('mmdge.Dynamic')
        assert taught and all(train[key] >= 0 for key in taught)
        assert 0.4 < train['flops_ratio'] < 1  # drawn, about even
        # As many of each image, though not the same.
        assert 0.4 < ratio < 1 and val['backbone/FLOPs_ratio_std'] < 1e-6
        assert 0 < gflops[0] < gflops[1] and val['backbone/region_spread'] > 0
    elif 'token-routing-' in path.stem:
        assert backbone.type == 'mmdge.TokenRoutingPVT'
        opened = backbone.get('gate_init') == 'open'
        least, most = (2.5, 4.5) if opened else (0.8, 2.0)
        assert least < train['flops_ratio'] < most
        # Without noise as it starts, and what the gates spend.
        least, most = (3.5, 4.5) if opened else (1, 1.05)
        assert least < ratio < most and 0 < hooks.cost.budget < 1
    elif 'cf-' in path.stem:
        assert backbone.type.startswith('mmdge.CF')
        assert ('loss_coarse' in train) == ('num_classes' in backbone)
        # All are split at first, none leaves.
        assert 1 < train['flops_ratio'] < 1.5 and hooks.cost.loss_weight == 0
        assert 0.4 < ratio < 1.3 and gflops[0] > 0
        assert val['backbone/region_spread'] > 0
    elif 'dge-' not in path.stem:
        assert hooks.cost.budget == train['flops_ratio'] == ratio == 1
        assert gflops[0] == gflops[1] > 0
    elif backbone.routing == 'learned':  # starts at 95 % finest
        assert hooks.cost.budget == 0.5
        assert hooks.cost.get('loss_weight', 1) == 1
        assert 0.85 < train['flops_ratio'] < 1.01
        assert 0.85 < ratio < 1.01
    else:
        assert 0.4 < hooks.cost.budget < 0.9 and hooks.cost.loss_weight == 0
        assert train['flops_ratio'] < 1.01  # still warming up
        assert 0.2 < ratio < 0.9 and 0 < gflops[0] < gflops[1]
