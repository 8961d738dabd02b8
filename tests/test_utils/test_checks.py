import os

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from mmdge.utils import UserError, checks
from tests import hostile


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
    checks.check_checkpoint(path)
    checks.check_checkpoint(save(path, weights['state_dict']))


@pytest.mark.parametrize('archive', [True, False])
@pytest.mark.parametrize('keep', [0.0, 0.02, 0.5, 0.99])
def test_truncated_checkpoint(tmp_path, weights, archive, keep):
    path = save(
        tmp_path / 'a.pth', weights, _use_new_zipfile_serialization=archive
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match='cut off or no PyTorch') as info:
        checks.check_checkpoint(path)
    assert str(path) in str(info.value)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('case', hostile.CASES, ids=lambda c: c.__name__)
def test_what_is_no_checkpoint_is_refused(tmp_path, case):
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    case(path, marker)
    with pytest.raises(UserError, match=hostile.CASES[case]) as info:
        checks.check_checkpoint(path)
    assert str(path) in str(info.value) and '\n' not in str(info.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'epoch': 3}, 'holds no weights but a dict with the keys: epoch'),
        ({}, 'an empty dict'),
        ({1: torch.zeros(2)}, 'a dict with the keys: 1'),
        ({'state_dict': torch.zeros(2)}, 'holds no weights'),
    ],
)
def test_a_dict_without_weights(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        checks.check_checkpoint(save(tmp_path / 'a.pth', content))


def test_a_prefix_must_be_there(tmp_path, weights):
    path = save(tmp_path / 'a.pth', weights)
    with pytest.raises(UserError, match=r"nothing below 'backbone\.' but a d"):
        checks.check_checkpoint(path, prefix='backbone.')
    init = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init))))
    with pytest.raises(UserError, match='leave out the prefix of init_cfg'):
        checks.check_checkpoints(cfg)
    checks.check_checkpoint(
        save(path, {'backbone.w': torch.zeros(2)}), prefix='backbone'
    )


def test_missing_checkpoint_and_addresses(tmp_path):
    for path in (tmp_path / 'none.pth', tmp_path):
        with pytest.raises(UserError, match='not found.*is not a file'):
            checks.check_checkpoint(path)
    checks.check_checkpoint('https://example.com/a.pth')
    checks.check_checkpoint('torchvision://resnet50')


MODEL = nn.ModuleDict(
    dict(
        backbone=nn.Linear(2, 2, bias=False), neck=nn.Linear(2, 3, bias=False)
    )
)


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('inside', [True, False])
def test_a_backbone_is_no_whole_model(tmp_path, prefix, inside):
    def is_whole(**shapes):
        state = {
            prefix + name.replace('_', '.'): torch.zeros(shape)
            for name, shape in shapes.items()
        }
        state = {'state_dict': state} if inside else state
        return checks.is_whole_model(save(tmp_path / 'a.pth', state), MODEL)

    assert is_whole(backbone_weight=(2, 2), neck_weight=(3, 2))
    assert is_whole(backbone_other=(2, 2), neck_weight=(3, 2), other=2)
    assert not is_whole(weight=(2, 2), blocks_0_backbone_b=1)
    # Of another kind of model, or for other classes.
    assert not is_whole(backbone_weight=(2, 2), head_fc=2)
    assert not is_whole(backbone_weight=(2, 2), neck_weight=(4, 2))


def test_an_address_may_hold_a_whole_model():
    @CheckpointLoader.register_scheme(prefixes='here://')
    def load(filename, map_location):
        names = (f'{filename[7:]}.a', 'neck.weight')
        return {'state_dict': dict.fromkeys(names, torch.zeros(3, 2))}

    assert checks.is_whole_model('here://backbone', MODEL)
    assert not checks.is_whole_model('here://block', MODEL)


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    checks.make_folder(tmp_path / 'a' / 'b', '--out')
    checks.make_folder(tmp_path / 'a' / 'b', '--out')
    assert (tmp_path / 'a' / 'b').is_dir()
    file = tmp_path / 'file'
    file.touch()
    for path in (file, file / 'folder'):
        with pytest.raises(UserError, match='there can be no such folder'):
            checks.make_folder(path, '--out')
    with pytest.raises(UserError, match='there is no such folder'):
        checks.check_output(tmp_path / 'none' / 'a.json', '--json')
    checks.check_output(tmp_path / 'a.json', '--json')
    # Root may write everywhere.
    monkeypatch.setattr(os, 'access', lambda *args: False)
    with pytest.raises(UserError, match='--out .*/a: the folder is not wri'):
        checks.make_folder(tmp_path / 'a', '--out')
    with pytest.raises(UserError, match='a.json: its folder is not writable'):
        checks.check_output(tmp_path / 'a.json', '--json')


def test_resume_needs_the_state_of_a_training(tmp_path, weights):
    path = save(tmp_path / 'a.pth', weights)
    with pytest.raises(UserError, match='cannot resume'):
        checks.check_checkpoint(path, resume=True)
    # As trainings before MMEngine had it, which cannot be gone on with.
    save(path, {**weights, 'optimizer': {}})
    with pytest.raises(UserError, match='cannot resume'):
        checks.check_checkpoint(path, resume=True)
    save(path, {**weights, 'optimizer': {}, 'message_hub': {}})
    checks.check_checkpoint(path, resume=True)


def test_init_cfg_is_checked(tmp_path):
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth'))
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[init]))))
    with pytest.raises(UserError, match=r'none\.pth'):
        checks.check_checkpoints(cfg)


def test_missing_data_root_inside_wrappers():
    dataset = dict(
        type='ConcatDataset',
        datasets=[dict(type='CocoDataset', data_root='data/coco/')],
    )
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dataset))
    cfg = Config(dict(train_dataloader=loader))
    with pytest.raises(UserError) as info:
        checks.check_datasets(cfg, ('train', 'val'))
    message = str(info.value)
    assert os.path.abspath('data/coco') in message
    assert 'cocodataset.org' in message
    assert 'train_dataloader.dataset.dataset.datasets.0.data_root' in message
    checks.check_datasets(cfg, ('val', 'test'))


@pytest.mark.parametrize(
    ('root', 'advice'),
    [
        ('data/shapes', 'make_shapes.py'),
        ('data/camvid', 'docs/datasets.md'),
        ('data/ade/ADEChallengeData2016', 'ADEChallengeData2016.zip'),
        ('data/mine', 'data not found: .*; set its place with'),
    ],
)
def test_advice_for_missing_data(root, advice):
    cfg = Config(dict(val_dataloader=dict(dataset=dict(data_root=root))))
    with pytest.raises(UserError, match=advice):
        checks.check_datasets(cfg, ('val',))


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
            checks.check_datasets(cfg, ('test',))
        (tmp_path / name).mkdir()
    checks.check_datasets(cfg, ('test',))


def test_data_that_is_fetched_or_remote_passes():
    for dataset in (
        dict(type='mmpretrain.CIFAR10', data_root='data/none'),
        dict(type='CocoDataset', data_root='s3://bucket/coco'),
        dict(
            type='CocoDataset',
            data_root='data/none',
            backend_args=dict(
                backend='petrel', path_mapping={'data/': 's3://data/'}
            ),
        ),
    ):
        cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
        checks.check_datasets(cfg, ('train',))
