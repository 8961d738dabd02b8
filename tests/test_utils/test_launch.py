import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdge.utils import UserError, launch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths must not find what lies in the repository."""
    monkeypatch.chdir(tmp_path)


def save(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path


@pytest.fixture
def weights():
    return {'state_dict': {'w': torch.zeros(5000)}, 'meta': {}}


@pytest.mark.parametrize('archive', [True, False])
def test_whole_checkpoint_passes(tmp_path, weights, archive):
    path = save(
        tmp_path / 'a.pth', weights, _use_new_zipfile_serialization=archive
    )
    launch.check_checkpoint(path)
    launch.check_checkpoint(save(path, weights['state_dict']))


@pytest.mark.parametrize('archive', [True, False])
@pytest.mark.parametrize('keep', [0.0, 0.02, 0.5, 0.99])
def test_truncated_checkpoint(tmp_path, weights, archive, keep):
    path = save(
        tmp_path / 'a.pth', weights, _use_new_zipfile_serialization=archive
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match='cut off or no PyTorch') as info:
        launch.check_checkpoint(path)
    assert str(path) in str(info.value)
    assert '\n' not in str(info.value)


def test_other_files_are_no_checkpoint(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('<html>404</html>')
    with pytest.raises(UserError, match='no PyTorch checkpoint'):
        launch.check_checkpoint(path)
    with pytest.raises(UserError, match='one object of type list'):
        launch.check_checkpoint(save(path, [1, 2]))
    with pytest.raises(UserError, match='keys: epoch'):
        launch.check_checkpoint(save(path, {'epoch': 3}))


def test_missing_checkpoint_and_addresses(tmp_path):
    for path in (tmp_path / 'none.pth', tmp_path):
        with pytest.raises(UserError, match='not found.*is not a file'):
            launch.check_checkpoint(path)
    launch.check_checkpoint('https://example.com/a.pth')
    launch.check_checkpoint('torchvision://resnet50')


def test_resume_needs_the_state_of_a_training(tmp_path, weights):
    path = save(tmp_path / 'a.pth', weights)
    with pytest.raises(UserError, match='cannot resume'):
        launch.check_checkpoint(path, resume=True)
    save(path, {**weights, 'optimizer': {}})
    launch.check_checkpoint(path, resume=True)


def test_init_cfg_is_checked(tmp_path):
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth'))
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[init]))))
    with pytest.raises(UserError, match=r'none\.pth'):
        launch.check_checkpoints(cfg)


def test_missing_data_root_inside_wrappers():
    dataset = dict(
        type='ConcatDataset',
        datasets=[dict(type='CocoDataset', data_root='data/coco/')],
    )
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dataset))
    cfg = Config(dict(train_dataloader=loader))
    with pytest.raises(UserError) as info:
        launch.check_datasets(cfg, ('train', 'val'))
    message = str(info.value)
    assert os.path.abspath('data/coco') in message
    assert 'cocodataset.org' in message
    assert 'train_dataloader.dataset.dataset.datasets.0.data_root' in message
    launch.check_datasets(cfg, ('val', 'test'))


@pytest.mark.parametrize(
    ('root', 'advice'),
    [
        ('data/shapes', 'make_shapes.py'),
        ('data/ade/ADEChallengeData2016', 'ADEChallengeData2016.zip'),
        ('data/mine', 'data not found: .*; set its place with'),
    ],
)
def test_advice_for_missing_data(root, advice):
    cfg = Config(dict(val_dataloader=dict(dataset=dict(data_root=root))))
    with pytest.raises(UserError, match=advice):
        launch.check_datasets(cfg, ('val',))


def test_each_file_of_a_dataset_is_looked_for(tmp_path):
    dataset = dict(
        data_root=str(tmp_path),
        ann_file='ann.json',
        data_prefix=dict(img='images/'),
    )
    cfg = Config(
        dict(
            test_dataloader=dict(dataset=dataset),
            test_evaluator=[dict(ann_file=str(tmp_path / 'other.json'))],
        )
    )
    for name in ('ann.json', 'images', 'other.json'):
        with pytest.raises(UserError, match=name):
            launch.check_datasets(cfg, ('test',))
        (tmp_path / name).mkdir()
    launch.check_datasets(cfg, ('test',))


def test_data_that_is_fetched_or_remote_passes():
    for dataset in (
        dict(type='mmpretrain.CIFAR10', data_root='data/none'),
        dict(type='CocoDataset', data_root='s3://bucket/coco'),
    ):
        cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
        launch.check_datasets(cfg, ('train',))


def test_load_config(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text("model = dict(type='A')\nhooks = [dict(x=1)]\n")
    cfg = launch.load_config(path, {'model.type': 'B', 'hooks.0.x': 2})
    assert (cfg.model.type, cfg.hooks[0].x) == ('B', 2)
    assert cfg.work_dir == os.path.join('work_dirs', 'small')
    assert launch.load_config(path, work_dir='w').work_dir == 'w'
    with pytest.raises(UserError, match='does not fit'):
        launch.load_config(path, {'hooks.7.x': 2})
    with pytest.raises(UserError, match='config not found'):
        launch.load_config(tmp_path / 'none.py')
    path.write_text("_base_ = './gone.py'\n")
    with pytest.raises(UserError, match='cannot read the config'):
        launch.load_config(path)


def test_cfg_options_without_a_value(capsys):
    with pytest.raises(SystemExit) as info:
        launch.build_parser('').parse_args(['c.py', '--cfg-options', 'a'])
    assert info.value.code == 2
    assert 'key=value' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a CPU machine')
def test_cpu_group_needs_a_launcher(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r'RANK.*dist_train\.sh'):
        launch.init_cpu_distributed(Config(dict(launcher='pytorch')))
    assert not launch.init_cpu_distributed(Config(dict(launcher='none')))


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a CPU machine')
def test_cpu_group_and_its_config(monkeypatch):
    env = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    env.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    model = dict(head=dict(norm_cfg=dict(type='SyncBN')))
    cfg = Config(dict(launcher='pytorch', model=model))
    cfg.find_unused_parameters = True
    assert launch.init_cpu_distributed(cfg)
    try:
        assert torch.distributed.get_backend() == 'gloo'
        assert cfg.model_wrapper_cfg.device_ids is None
        assert cfg.model_wrapper_cfg.find_unused_parameters
        assert cfg.model.head.norm_cfg.type == 'BN'
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
