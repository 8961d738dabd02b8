"""Images as the validation sees them."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdge.calibration import load_images
from mmdge.datasets import image_loader, write_shapes
from mmdge.utils import UserError, launch
from tests.tool_runs import ROOT, SHAPES

NUM = dict(train=6, val=4)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    write_shapes(
        root, num_train=NUM['train'], num_val=NUM['val'], size=96
    )  # fmt: skip
    return root


@pytest.fixture(params=SHAPES)
def cfg(request, shapes):
    """A host's config of shapes."""
    return config(request.param, shapes)


def config(host, shapes):
    cfg = Config.fromfile(ROOT / SHAPES[host])
    init_default_scope(cfg.default_scope)
    root = shapes / 'crops' if host == 'mmpretrain' else shapes
    for split in NUM:
        cfg[f'{split}_dataloader'].dataset.data_root = f'{root}/'
    if host == 'mmpretrain':
        for split in NUM:
            cfg[f'{split}_dataloader'].collate_fn = dict(
                type='default_collate'
            )
    return cfg


def paths(loader):
    return [
        sample.img_path for data in loader for sample in data['data_samples']
    ]


@pytest.mark.parametrize('split', NUM)
def test_all_images_of_a_split_in_order(cfg, split):
    before = copy.deepcopy(cfg.to_dict())
    loader = image_loader(cfg, split)
    found = paths(loader)
    assert len(found) == len(set(found)) >= NUM[split]
    assert found == paths(image_loader(cfg, split)) == sorted(found)
    assert all(f'/{split}/' in path for path in found)
    assert cfg.to_dict() == before


def test_training_images_go_through_the_validations_pipeline(shapes):
    cfg = config('mmdet', shapes)
    cfg.train_dataloader.dataset.pipeline = [dict(type='NoSuchStep')]
    cfg.val_dataloader.dataset.pipeline[1] = dict(
        type='Resize', scale=(64, 64), keep_ratio=False
    )
    for data in image_loader(cfg, 'train'):
        assert data['inputs'][0].shape == (3, 64, 64)
        assert len(data['inputs']) == 1


def test_a_subset_is_always_the_same(cfg):
    everything = paths(image_loader(cfg, 'train'))
    some = paths(image_loader(cfg, 'train', 3))
    torch.manual_seed(5)
    assert paths(image_loader(cfg, 'train', 3)) == some
    assert len(some) == 3 and set(some) < set(everything)
    assert paths(image_loader(cfg, 'train', 10**6)) == everything


@pytest.mark.parametrize(
    'wrap',
    [
        lambda ds: dict(type='RepeatDataset', times=3, dataset=ds),
        lambda ds: dict(
            type='ClassBalancedDataset',
            oversample_thr=0.1,
            dataset=dict(type='RepeatDataset', times=2, dataset=ds),
        ),
        lambda ds: dict(
            type='MultiImageMixDataset', dataset=ds, pipeline=[]
        ),
    ],
)  # fmt: skip
def test_wrappers_are_looked_into(shapes, wrap):
    cfg = config('mmdet', shapes)
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = Config(dict(d=wrap(dataset))).d
    found = paths(image_loader(cfg, 'train'))
    assert len(found) == NUM['train']
    assert all('/train/' in path for path in found)


def test_what_the_training_set_does_not_say_is_not_the_validations(shapes):
    """As an annotation file of the validation set's images."""
    cfg = config('mmpretrain', shapes)
    listed = shapes / 'listed.txt'
    listed.write_text('rows/none.png 0\n')
    cfg.val_dataloader.dataset.ann_file = str(listed)
    assert len(image_loader(cfg, 'val')) == 1
    assert all('/train/' in path for path in paths(image_loader(cfg, 'train')))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda ds: dict(type='ConcatDataset', datasets=[ds, ds]),
        lambda ds: dict(type='RepeatDataset', times=2, dataset=ds),
        lambda ds: dict(
            type='ConcatDataset',
            datasets=[dict(type='RepeatDataset', times=2, dataset=ds)],
        ),
    ],
)
def test_wrappers_of_the_validation_are_not_the_trainings(shapes, wrap):
    cfg = config('mmdet', shapes)
    dataset = cfg.val_dataloader.dataset
    cfg.val_dataloader.dataset = Config(dict(d=wrap(dataset))).d
    found = paths(image_loader(cfg, 'train'))
    assert len(found) == NUM['train']
    assert all('/train/' in path for path in found)
    assert len(image_loader(cfg, 'val')) == 2 * NUM['val']


def test_a_mixture_is_taken_from_all_of_its_parts(shapes):
    """Each set once, also of another type than the validation's."""
    cfg = config('mmdet', shapes)
    train, val = (cfg[f'{s}_dataloader'].dataset for s in ('train', 'val'))
    cfg.train_dataloader.dataset = Config(
        dict(d=dict(type='ConcatDataset', datasets=[train, train, val]))
    ).d
    found = paths(image_loader(cfg, 'train'))
    assert len(found) == len(set(found)) == NUM['train'] + NUM['val']
    assert len(image_loader(cfg, 'train', 3)) == 3
    cfg.train_dataloader.dataset.datasets[2] = dict(
        val,
        type='mmdet.DeepFashionDataset',  # of COCO's format
        pipeline=[dict(type='NoSuchStep')],
    )
    assert sorted(paths(image_loader(cfg, 'train'))) == sorted(found)


def test_mistakes_are_named(shapes):
    cfg = config('mmdet', shapes)
    cfg.pop('train_dataloader')
    with pytest.raises(UserError, match='has no train_dataloader; take tho'):
        image_loader(cfg, 'train')
    cfg.pop('val_dataloader')
    with pytest.raises(UserError, match='has no val_dataloader'):
        image_loader(cfg)


def test_images_are_as_the_backbone_gets_them(cfg, capfd):
    model = launch.build_model(cfg)
    images = load_images(cfg, model, 3, 'val')
    assert len(images) == 3
    assert '3/3' in capfd.readouterr().err  # the progress
    for image in images:
        assert image.shape[:2] == (1, 3) and image.dtype == torch.float32
        assert -3 < image.min() < 0 < image.max() < 3  # normalised
        with torch.no_grad():
            model.backbone(image)


@pytest.mark.parametrize('split', NUM)
def test_images_have_the_size_of_the_test(split, shapes):
    cfg = config('mmdet', shapes)
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    model = launch.build_model(cfg)
    assert load_images(cfg, model, 1, split)[0].shape[2:] == (64, 64)
    cfg.pop('test_dataloader')
    assert load_images(cfg, model, 1, split)[0].shape[2:] == (96, 96)


def test_a_preprocessor_beside_the_model_is_the_models(shapes):
    """Where mmpretrain's own configs have it."""
    cfg = config('mmpretrain', shapes)
    (expected, *_) = load_images(cfg, launch.build_model(cfg), 1)
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    (found, *_) = load_images(cfg, launch.build_model(cfg), 1)
    torch.testing.assert_close(found, expected)
