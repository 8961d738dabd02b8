"""What tools/train.py makes of a config's entries and of its options."""

import pytest
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mmdge.utils import UserError
from tests.tool_runs import (
    NO_WORKERS,
    ROOT,
    SHAPES,
    data_options,
    functions_of,
)

# What MMEngine's Runner has a default for, or does without.
OPTIONAL = [
    'resume',
    'load_from',
    'auto_scale_lr',
    'custom_hooks',
    'default_hooks',
    'experiment_name',
    'log_processor',
    'model_wrapper_cfg',
    'param_scheduler',
    'strategy',
    'test_dataloader',
    'test_cfg',
    'test_evaluator',
    'val_dataloader',
    'val_cfg',
    'val_evaluator',
    'visualizer',
    'work_dir',
]


@pytest.fixture
def script():
    return functions_of('tools/train.py')


@pytest.mark.parametrize('way', ['lacking', 'None'])
def test_a_config_may_do_without(way, shapes, tmp_path, tool, monkeypatch):
    cfg = Config.fromfile(ROOT / SHAPES['mmdet'])
    options = [*data_options('mmdet', shapes), *NO_WORKERS]
    cfg.merge_from_dict(dict(o.split('=', 1) for o in options[:1]))
    cfg.merge_from_dict(
        {
            'train_cfg.max_epochs': 1,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
        }
    )
    for key in OPTIONAL:
        if way == 'None':
            cfg[key] = None
        else:
            cfg.pop(key, None)
    cfg.dump(tmp_path / 'config.py')
    # Where the work dir goes to by itself.
    monkeypatch.chdir(tmp_path)
    said = tool('tools/train.py', tmp_path / 'config.py')
    assert 'Epoch(train)' in said
    folder = tmp_path / 'work_dirs' / 'config'
    assert (folder / 'epoch_1.pth').exists()
    # There is a mark now, and something to go on from.
    said = tool(
        *('tools/train.py', tmp_path / 'config.py', '--resume'),
        *('--cfg-options', 'train_cfg.max_epochs=2'),
        f'experiment_name={tmp_path.name}',
    )
    assert 'resumed epoch: 1' in said
    assert (folder / 'epoch_2.pth').exists()


@pytest.mark.parametrize(
    'kind',
    [None, 'OptimWrapper', 'mmengine.AmpOptimWrapper', OptimWrapper,
     AmpOptimWrapper],
)  # fmt: skip
def test_mixed_precision_of_any_wrapper(kind, script, monkeypatch):
    monkeypatch.setattr(script.torch.cuda, 'is_available', lambda: True)
    wrapper = dict(type=kind, loss_scale=None)
    for given in (wrapper, {} if kind is None else dict(type=kind)):
        cfg = Config(dict(optim_wrapper=dict(given)))
        script.use_amp(cfg, 'float16')
        assert cfg.optim_wrapper == dict(
            type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic'
        )
    for nothing in ({}, dict(optim_wrapper=None)):
        with pytest.raises(UserError, match='needs an optim_wrapper'):
            script.use_amp(Config(nothing), 'float16')


def test_a_batch_size_of_none_scales_nothing(script):
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=None)))
    with pytest.raises(UserError, match=r'auto_scale_lr\.base_batch_size'):
        script.scale_lr(cfg)
