import errno
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmdet.models import RetinaNet
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import MODELS
from torch import nn

from mmdge import CostHook
from mmdge.utils import UserError, launch

ROOT = Path(__file__).resolve().parents[2]
ARCH = dict(
    embed_dims=(16, 32, 64, 64),
    num_layers=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 4),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths must not find what lies in the repository."""
    monkeypatch.chdir(tmp_path)


def test_load_config(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text("model = dict(type='A')\nhooks = [dict(x=1)]\n")
    cfg = launch.load_config(path, {'model.type': 'B', 'hooks.0.x': 2})
    assert (cfg.model.type, cfg.hooks[0].x) == ('B', 2)
    assert cfg.work_dir == os.path.join('work_dirs', 'small')
    assert launch.load_config(path, work_dir='w').work_dir == 'w'
    with pytest.raises(UserError, match='does not fit'):
        launch.load_config(path, {'hooks.7.x': 2})
    with pytest.raises(UserError, match='none.py: FileNotFoundError'):
        launch.load_config(tmp_path / 'none.py')
    path.write_text("_base_ = './gone.py'\n")
    with pytest.raises(UserError, match='cannot read the config'):
        launch.load_config(path)


@pytest.mark.parametrize('parser', [launch.config_parser, launch.build_parser])
def test_cfg_options_without_a_value(parser, capsys):
    with pytest.raises(SystemExit) as info:
        parser('').parse_args(['c.py', '--cfg-options', 'a'])
    assert info.value.code == 2
    assert 'key=value' in capsys.readouterr().err


def test_a_tool_that_starts_no_run_takes_no_options_of_one():
    options = ['c.py', '--cfg-options', 'a=1']
    run = vars(launch.build_parser('').parse_args(options))
    config = vars(launch.config_parser('').parse_args(options))
    assert config == dict(config='c.py', cfg_options={'a': 1})
    assert run.keys() - config.keys() == {'work_dir', 'launcher', 'local_rank'}


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a CPU machine')
def test_cpu_group_and_its_config(monkeypatch):
    env = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    env.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    kinds = ('SyncBN', 'mmcv.SyncBN', 'MMSyncBN', nn.SyncBatchNorm, 'LN')
    model = dict(
        head=dict(norm_cfg=dict(type='SyncBN')),
        necks=[dict(norm_cfg=dict(type=kind)) for kind in kinds],
    )
    cfg = Config(dict(launcher='pytorch', model=model))
    cfg.find_unused_parameters = True
    assert not launch.init_cpu_distributed(Config(dict(launcher='none')))
    assert launch.init_cpu_distributed(cfg)
    try:
        assert torch.distributed.get_backend() == 'gloo'
        assert cfg.model_wrapper_cfg.device_ids is None
        assert cfg.model_wrapper_cfg.find_unused_parameters
        assert cfg.model.head.norm_cfg.type == 'BN'
        found = [neck.norm_cfg.type for neck in cfg.model.necks]
        assert found == ['BN'] * 4 + ['LN']
    finally:
        assert launch.run_tool(lambda: None) == 0
    assert not torch.distributed.is_initialized()


def test_user_error_leaves_the_tool_in_one_line(tmp_path):
    config = tmp_path / 'small.py'
    config.write_text("load_from = 'gone.pth'\n")
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', config],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith('error: checkpoint not found: ')
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_the_system_says_of_files_keeps_its_traceback(code):
    def main():
        raise OSError(code, os.strerror(code), 'a.json')

    with pytest.raises(OSError, match=rf"{os.strerror(code)}: 'a\.json'"):
        launch.run_tool(main)


@pytest.mark.parametrize(
    'kind', ['AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper]
)
def test_mixed_precision_needs_a_gpu(kind, monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    wrapper = dict(type=kind, loss_scale='dynamic', x=1)
    cfg = Config(dict(optim_wrapper=wrapper))
    launch.do_without_amp(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', x=1)
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    cfg = Config(dict(optim_wrapper=wrapper))
    launch.do_without_amp(cfg)
    assert cfg.optim_wrapper.type == kind
    for nothing in ({}, dict(optim_wrapper=None)):
        launch.do_without_amp(Config(nothing))


class TestHostOf:
    def test_the_default_scope_comes_first(self):
        cfg = Config(dict(default_scope='mmseg', model=dict(type='mmdet.X')))
        assert launch.host_of(cfg) == 'mmseg'

    @pytest.mark.parametrize('scope', [{}, dict(default_scope=None)])
    def test_else_the_model_says_it(self, scope):
        def of(kind):
            return launch.host_of(Config(dict(scope, model=dict(type=kind))))

        class Own(RetinaNet):
            pass

        assert of(RetinaNet) == of(Own) == of('mmdet.RetinaNet') == 'mmdet'
        assert of('mmdet.models.detectors.RetinaNet') == 'mmdet'
        assert of('RetinaNet') is of(torch.nn.Linear) is None
        assert launch.host_of(Config(scope)) is None

    def test_loaders_of_mmpretrain_have_its_defaults(self, tmp_path):
        path = tmp_path / 'new.py'
        path.write_text(
            'default_scope = None\n'
            "model = dict(type='mmpretrain.ImageClassifier')\n"
            'val_dataloader = dict(num_workers=1)\n'
        )
        loader = launch.load_config(path).val_dataloader
        assert loader.collate_fn.type == 'default_collate'
        assert loader.persistent_workers


@pytest.mark.parametrize('default', [{}, None, 'missing'])
def test_hooks_are_replaced(default):
    kept = dict(type='mmdge.GranularityVisHook')
    cfg = Config(
        dict(
            default_hooks=dict(cost=dict(type='mmdge.CostHook'), none=None),
            custom_hooks=[
                dict(type=CostHook, budget=0.5),
                kept,
                dict(type='mmdet.ExpEMAHook'),
            ],
        )
    )
    assert [hook.type for hook in launch.hooks_of(cfg)][1:] == [
        CostHook,
        kept['type'],
        'mmdet.ExpEMAHook',
    ]
    new = dict(type='mmdge.CostHook', budget=0.3)
    launch.replace_hooks(cfg, 'CostHook', '*EMAHook', mine=new)
    assert cfg.default_hooks == dict(none=None, mine=new)
    assert cfg.custom_hooks == launch.hooks_of(cfg)[1:] == [kept]
    bare = Config({} if default == 'missing' else dict(default_hooks=default))
    launch.replace_hooks(bare, 'CostHook', mine=new)
    assert bare.default_hooks == dict(mine=new)


class Pair(nn.Module):
    """A teacher and its student, as the hosts have them."""

    def __init__(self, part):
        super().__init__()
        self.teacher, self.student = MODELS.build(part), MODELS.build(part)


def test_a_model_of_several_backbones_loads_as_a_whole(tmp_path):
    part = dict(type='mmdge.DGEPVT', arch=ARCH)
    weights = Pair(part).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'pair.pth')
    cfg = Config(dict(model=dict(type=Pair, part=part), default_scope=None))
    model = launch.build_model(cfg, tmp_path / 'pair.pth').cpu()
    assert all(w.equal(weights[k]) for k, w in model.state_dict().items())
    assert not model.training


class TestHosts:
    """A config for a host that is not there; ``find_spec`` doesn't see it."""

    @pytest.fixture
    def without(self, monkeypatch):
        def hide(host):
            monkeypatch.setattr(
                launch,
                'find_spec',
                lambda name: None if name == host else find_spec(name),
            )

        return hide

    @pytest.mark.parametrize(
        'host, how',
        [
            ('mmdet', 'onedl-mmdetection'),
            ('mmseg', 'onedl-mmsegmentation'),
            ('mmpretrain', 'onedl-mmpretrain'),
        ],
    )
    def test_a_missing_host_is_named(self, host, how, without, tmp_path):
        path = tmp_path / 'mine.py'
        path.write_text(f'default_scope = {host!r}')
        launch.load_config(path)  # it is there
        without(host)
        message = rf'mine.py needs {host}, .*pip install {how} '
        with pytest.raises(UserError, match=message):
            launch.load_config(path)

    def test_another_missing_module_is_named(self, tmp_path):
        path = tmp_path / 'mine.py'
        path.write_text("x = __import__('surely_not_there')")
        with pytest.raises(UserError, match="mine.py: .*'surely_not_there"):
            launch.load_config(path)
