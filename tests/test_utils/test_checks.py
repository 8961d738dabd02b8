import json
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit
from mmengine.registry import DATASETS
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


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(UserError, match='there is no such folder'):
        checks.check_output(tmp_path / 'none' / 'a.json', '--json')
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
    assert 'docs/training.md' in message
    assert 'train_dataloader.dataset.dataset.datasets.0.data_root' in message
    checks.check_datasets(cfg, ('val', 'test'))


@pytest.mark.parametrize(
    ('root', 'advice'),
    [
        ('data/shapes', 'make_shapes.py'),
        ('data/camvid', 'projects/study/README.md'),
        ('data/ade/ADEChallengeData2016', 'docs/training.md'),
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
    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    for name in ('ann.json', 'images'):
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


@pytest.fixture
def voc(tmp_path):
    """Four images as Pascal VOC has them: a function that builds the config
    of a data set, for classes."""
    (tmp_path / 'Annotations').mkdir()
    for i, name in enumerate(['cat', 'cat', 'dog', 'cow']):
        (tmp_path / 'Annotations' / f'{i}.xml').write_text(
            '<?xml version="1.0" encoding="utf-8"?><annotation>'
            '<size><width>9</width><height>9</height></size><object><name>'
            f'{name}</name><difficult>0</difficult><bndbox><xmin>1</xmin>'
            '<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>'
            '</annotation>'
        )
    (tmp_path / 'all.txt').write_text('0\n1\n2\n3\n')

    def config(kind, classes, **kwargs):
        metainfo = dict(classes=classes)
        kwargs.update(type=kind, data_root=str(tmp_path), metainfo=metainfo)
        prefix = dict(sub_data_root='')
        return dict(kwargs, ann_file='all.txt', data_prefix=prefix)

    return config


def has_classes(config):
    checks.check_classes(DATASETS.build(config))


def test_names_of_classes_are_those_of_pascal_voc(voc):
    kind = 'mmdet.VOCDataset'
    has_classes(voc(kind, ['cat', 'dog', 'cow']))
    has_classes(voc(kind, ['cat', 'dog', 'bird']))  # some, as in a subset
    has_classes(voc(kind, ['dog']))
    for classes, how in (
        (['Cat', 'DOG'], "none of the .*: 'Cat', 'DOG' here, but 'ca"),
        (
            ['cat', 'Dog'],
            "not all of the .*: 'Dog' here, but 'co",
        ),
        (
            ['bird'],
            "none of the classes of the config: 'bird' here",
        ),
    ):
        with pytest.raises(UserError, match=rf'all\.txt has {how}'):
            has_classes(voc(kind, classes))
        wrapped = dict(type='ConcatDataset', datasets=[voc(kind, classes)])
        with pytest.raises(UserError, match='of the classes of the config'):
            has_classes(wrapped)


def test_nothing_is_left_of_a_data_set(voc):
    filtered = voc(
        'mmdet.VOCDataset', ['Cat'], filter_cfg=dict(filter_empty_gt=True)
    )
    with pytest.raises(ValueError, match='need at least one array'):
        DATASETS.build(filtered)
    loader = dict(dataset=dict(type='RepeatDataset', dataset=filtered))
    with pytest.raises(UserError, match='none of the classes of the config'):
        checks.check_filtered_classes(loader)
    filtered['metainfo']['classes'] = ['cat']
    checks.check_filtered_classes(loader)


@pytest.mark.parametrize(
    'classes, message',
    [
        (['cat', 'dog'], None),
        (['dog'], None),
        (['cat', 'bird'], None),
        (['Cat', 'dog'], "not all of .*: 'Cat' here, but 'cat' there"),
        (['Cat', 'Dog'], "none of .*: 'Cat', 'Dog' here, but 'cat', 'dog' th"),
    ],
)
@pytest.mark.parametrize('kept', [None, dict(filter_empty_gt=True)])
def test_names_of_classes_are_those_of_coco(classes, message, kept, tmp_path):
    names = enumerate(['cat', 'dog'], 1)
    coco = dict(
        images=[dict(id=1, file_name='a.jpg', width=9, height=9)],
        categories=[dict(id=i, name=name) for i, name in names],
        annotations=[
            dict(id=i, image_id=1, category_id=i, bbox=[0, 0, 8, 8], area=64,
                 iscrowd=0) for i in (1, 2)
        ],
    )  # fmt: skip
    (tmp_path / 'coco.json').write_text(json.dumps(coco))
    config = dict(
        type='mmdet.CocoDataset',
        ann_file=str(tmp_path / 'coco.json'),
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
        filter_cfg=kept,
    )
    check = checks.check_filtered_classes if kept else has_classes
    if message is None:
        return check(config)
    with pytest.raises(UserError, match=rf'coco\.json has {message}'):
        check(config)


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_weights_of_a_part_are_looked_for(kind, tmp_path):
    init = dict(type=kind, checkpoint=str(tmp_path / 'none.pth'))
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[init]))))
    with pytest.raises(UserError, match=r'none\.pth'):
        checks.check_checkpoints(cfg)


def test_entries_may_be_missing_or_none(tmp_path):
    cfg = Config(dict(model=None, load_from=None, train_dataloader=None))
    checks.check_checkpoints(cfg)
    checks.check_datasets(cfg, ('train', 'val'))
    keys = 'type', 'data_root', 'ann_file', 'data_prefix', 'backend_args'
    loader = dict(dataset=dict.fromkeys(keys))
    cfg = Config(dict(train_dataloader=loader))
    checks.check_datasets(cfg, ('train',))
    assert checks.type_name(dict(type=None), 'OptimWrapper') == 'OptimWrapper'
