"""What people get wrong, and files that are broken: what they are told.

What is seen before the run is one line, a ``UserError``; of the rest PyTorch,
MMEngine or the host tells, the last line of a traceback. Nothing that was
there is overwritten. Checkpoints have tests/test_tools/test_checkpoints.py.
"""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from traceback import clear_frames

import cv2
import numpy as np
import pytest
from PIL import UnidentifiedImageError

from mmdge.datasets import write_shapes
from mmdge.utils import UserError, launch
from tests.tool_runs import NO_WORKERS, SHAPES, data_options, error_in

BACKBONE = 'model.backbone.'
PIPELINE = 'train_dataloader.dataset.pipeline.'


@pytest.fixture
def data(tmp_path):
    write_shapes(tmp_path / 'shapes', num_train=4, num_val=2, size=96)
    return tmp_path / 'shapes'


@pytest.fixture
def train(tmp_path, tool):
    """A function that trains an epoch; if that fails, what was there stays.

    It takes the error that is expected, and what it says.
    """

    def run(config, root, *options, kind=None, message='', trained=False):
        work_dir = tmp_path / 'run'
        work_dir.mkdir()
        kept = [work_dir / n for n in ('epoch_1.pth', 'last_checkpoint')]
        for path in kept:
            path.write_text(f'{work_dir}/epoch_1.pth')
        host = next((h for h in SHAPES if SHAPES[h] == config), 'mmdet')
        mine = kind is UserError
        host_tells = kind and not mine
        said = ''
        with pytest.raises(kind) if host_tells else nullcontext() as info:
            said = tool(
                *('tools/train.py', config, '--work-dir', work_dir),
                '--cfg-options',
                *data_options(host, root),
                *NO_WORKERS,
                'train_dataloader.batch_size=2',
                'train_cfg.max_epochs=1',
                'train_cfg.val_interval=1',
                'model.test_cfg.score_thr=0.0'
                if host == 'mmdet'
                else 'epoch=1',
                # Two runs of one name within a second would share a logger.
                f'experiment_name={tmp_path.name}',
                *options,
                expect=2 if mine else 0,
            )
        if host_tells:  # or its loader waits, when collected, for 5 s
            clear_frames(info.tb)
        if kind:
            told = error_in(said) if mine else str(info.value)
            assert re.search(message, told, re.DOTALL), told
            assert not host_tells or info.type is kind
        else:
            assert 'has checkpoints of an earlier training' in said
        for path in kept if kind and not trained else ():
            assert path.read_text() == f'{work_dir}/epoch_1.pth'
        if not trained:
            assert not [*work_dir.glob('*.part')]
        return said

    return run


CONFIGS = {
    'backbone type': (
        KeyError,
        [f'{BACKBONE}type=mmdge.DGEPTV'],
        'mmdge.DGEPTV is not in the mmdet::model registry',
    ),
    'arch name': (
        UserError,
        [f'{BACKBONE}arch=tinny'],
        "arch='tinny' is unknown; allowed are 'tiny', 'small'",
    ),
    'arch number': (
        UserError,
        [f'{BACKBONE}arch=3'],
        'arch must be a name or a dict',
    ),
    'routing name': (
        UserError,
        [f'{BACKBONE}routing=varience'],
        "routing='varience' is unknown; allowed are 'finest', 'static', 'lea",
    ),
    'granularities order': (
        UserError,
        [f'{BACKBONE}granularities=(4,2,1)'],
        r'granularities=\(4, 2, 1\) must be positive and ascending',
    ),
    'granularities that do not divide': (
        UserError,
        [f'{BACKBONE}granularities=(1,3,4)'],
        r'each dividing the last, e\.g\. \(1, 2, 4\)',
    ),
    'granularities of letters': (
        UserError,
        [f'{BACKBONE}granularities=abc'],
        "granularities='abc' must be positive and ascending integers",
    ),
    'price': (
        UserError,
        [f'{BACKBONE}price=cheap'],
        "price must be a number, but got 'cheap'",
    ),
    'argument': (
        TypeError,
        [f'{BACKBONE}depth=50'],
        r"PVT\.__init__.*unexpected keyword argument 'depth'",
    ),
    'out_indices': (
        UserError,
        [f'{BACKBONE}out_indices=(0,7)'],
        r'out_indices=\(0, 7\) must be .* among 0 to 3',
    ),
    'frozen_stages': (
        UserError,
        [f'{BACKBONE}frozen_stages=9'],
        'frozen_stages=9 must be an integer of at most 4',
    ),
    'drop_path_rate': (
        UserError,
        [f'{BACKBONE}drop_path_rate=2'],
        r'drop_prob must be in \[0, 1\)',
    ),
    'budget': (
        UserError,
        ['default_hooks.cost.budget=50'],
        r'budget, .* must be in \(0, 1\], but got 50',
    ),
    'hook': (
        KeyError,
        ['default_hooks.cost.type=mmdge.CostHok'],
        'mmdge.CostHok is not in the mmdet::hook registry',
    ),
    'metric without the hook': (
        ValueError,
        [
            'custom_hooks=[]',
            'default_hooks.granularity.type=mmdge.GranularityVisHook',
        ],
        r"without backbone_cost; add cost=dict\(type='mmdge\.CostHook'",
    ),
    'data set': (
        KeyError,
        ['train_dataloader.dataset.type=CocoDatset'],
        'CocoDatset is not in the mmdet::dataset registry',
    ),
    'transform': (
        KeyError,
        [f'{PIPELINE}0.type=LoadImageFromFil'],
        'LoadImageFromFil is not in the mmdet::transform registry',
    ),
    'loop': (
        KeyError,
        ['train_cfg.type=EpochBasedLoop'],
        'EpochBasedLoop is not in the mmdet::loop registry',
    ),
    'optimizer': (
        TypeError,
        ['optim_wrapper.optimizer.momentum=0.9'],
        r"AdamW\.__init__.*unexpected keyword argument 'momentum'",
    ),
    'number of classes': (
        RuntimeError,
        ['model.bbox_head.num_classes=2'],
        'Class values must be smaller than num_classes',
    ),
    'epochs': (
        ValueError,
        ['train_cfg.max_epochs=many'],
        "invalid literal for int.* 'many'",
    ),
    'batch of none': (
        ValueError,
        ['train_dataloader.batch_size=0'],
        'batch_size should be a positive integer',
    ),
    'learning rate': (
        ValueError,
        ['optim_wrapper.optimizer.lr=-1'],
        'Invalid learning rate: -1',
    ),
    'learning rate with a comma': (
        TypeError,
        ['optim_wrapper.optimizer.lr=0,0001'],
        "'<=' not supported between instances of 'float' and 'list'",
    ),
    'number of checkpoints': (
        TypeError,
        ['default_hooks.checkpoint.max_keep_ckpts=abc'],
        "'>' not supported between instances of 'str' and 'int'",
    ),
    'half a training': (
        ValueError,
        ['optim_wrapper=None'],
        'train_dataloader, train_cfg, and optim_wrapper should be',
    ),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_a_config(case, data, train):
    kind, options, message = CONFIGS[case]
    # Which names the metric; it ends the epoch.
    old = case == 'metric without the hook'
    train(
        'tests/data/config_0.1.py' if old else SHAPES['mmdet'],
        data,
        *options,
        kind=kind,
        message=message,
        trained=old,
    )


FILES = {
    'missing base': ('c.py', "_base_ = 'nothing.py'", r'nothing\.py'),
    'syntax': ('c.py', 'model = dict(\n', r"'\(' was never closed"),
    'extension': ('c.txt', 'a = 1', 'Only py/yml/yaml/json type'),
    'empty': ('c.py', '', "has no entry 'model'"),
    'broken json': ('c.json', '{', 'line 1 column 2'),
    'unknown name': (
        'c.py',
        'model = dict(a=b)',
        "NameError: name 'b' is not",
    ),
}


@pytest.mark.parametrize('case', FILES)
def test_a_config_file(case, tmp_path, tool):
    name, content, message = FILES[case]
    (tmp_path / name).write_text(content)
    said = tool('tools/train.py', tmp_path / name, expect=2)
    error = error_in(said)
    assert re.search(message, error) and str(tmp_path / name) in error


def draw(*shape, dtype=np.uint8):
    """A function that writes an image of noise."""
    noise = np.random.default_rng(0).random(shape) * np.iinfo(dtype).max

    def write(path):
        assert cv2.imwrite(str(path), noise.astype(dtype))

    return write


def content(some):
    return lambda path: path.write_bytes(some)


def first(root, pattern):
    return sorted(root.glob(pattern))[0]


def as_png(root):
    """Name the first image by an ending that any depth goes with."""
    annotations = root / 'annotations' / 'instances_train.json'
    name = first(root, 'train/*.jpg').name
    text = annotations.read_text().replace(name, 'a.png')
    annotations.write_text(text)
    return root / 'train' / 'a.png'


BROKEN_IMAGES = {
    'cut off': (
        AssertionError,
        lambda p: p.write_bytes(p.read_bytes()[:200]),
        'failed to',
    ),
    'empty': (cv2.error, content(b''), 'buf.empty'),
    'text': (
        AssertionError,
        content(b'<html>404</html>'),
        'failed to load image',
    ),
    'missing': (FileNotFoundError, lambda p: p.unlink(), 'No such file'),
}


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('case', BROKEN_IMAGES)
def test_a_broken_image(case, workers, data, train):
    kind, change, message = BROKEN_IMAGES[case]
    path = first(data, 'train/*.jpg')
    change(path)
    # OpenCV alone doesn't name it.
    named = '' if case == 'empty' else path
    train(
        SHAPES['mmdet'],
        data,
        f'train_dataloader.num_workers={workers}',
        kind=kind,
        message=f'{message}.*{named}',
    )


@pytest.mark.parametrize(
    'write',
    [
        draw(1, 1, 3),
        draw(1, 1500, 3),
        draw(1500, 1, 3),
        draw(96, 96),
        draw(96, 96, 4),
        draw(96, 96, 3, dtype=np.uint16),
    ],
    ids=['1x1', '1x1500', '1500x1', 'grey', 'RGBA', '16 bit'],
)
def test_an_unusual_image_trains_and_is_evaluated(write, data, train):
    write(as_png(data))
    said = train(
        SHAPES['mmdet'],
        data,
        # It is evaluated, too.
        'val_dataloader.dataset.ann_file=annotations/instances_train.json',
        'val_dataloader.dataset.data_prefix.img=train/',
        'val_evaluator.0.ann_file='
        f'{data / "annotations" / "instances_train.json"}',
    )
    assert 'backbone/GFLOPs' in said and 'nan' not in said


def edit(change):
    """A function that changes annotations in COCO's format."""

    def run(root):
        path = root / 'annotations' / 'instances_train.json'
        coco = json.loads(path.read_text())
        for annotation in coco['annotations']:
            change(annotation)
        path.write_text(json.dumps(coco))

    return run


def drop(root):
    path = root / 'annotations' / 'instances_train.json'
    path.write_text(json.dumps({**json.loads(path.read_text()),
                                'annotations': []}))  # fmt: skip


NO_OBJECT = 'none of the first 4 images of .*instances_train.json has an obj'
HARMLESS = {
    'no objects': drop,
    'crowds alone': edit(lambda a: a.update(iscrowd=1)),
    'boxes without area': edit(lambda a: a.update(bbox=[3, 3, 0, 0])),
    'boxes outside': edit(lambda a: a.update(bbox=[999, 999, 5, 5])),
    'boxes that are no numbers': edit(
        lambda a: a.update(bbox=[float('nan')] * 4)
    ),
    'unknown categories': edit(lambda a: a.update(category_id=99)),
    'unknown images': edit(lambda a: a.update(image_id=9999)),
}


@pytest.mark.parametrize('case', HARMLESS)
def test_annotations_of_nothing_train(case, data, train):
    """They are left out, as mmdet does, and the loss is that of nothing."""
    HARMLESS[case](data)
    said = train(SHAPES['mmdet'], data)
    assert re.search(r'Epoch\(train\).* loss: \d+\.\d+', said)
    assert 'nan' not in said
    # A crowd is there to be ignored.
    assert bool(re.search(NO_OBJECT, said)) == (case != 'crowds alone')


def write(text):
    return lambda root: (
        root / 'annotations' / 'instances_train.json'
    ).write_text(text)


def rename(root):
    path = root / 'annotations' / 'instances_train.json'
    path.write_text(path.read_text().replace('"name": "', '"name": "x'))


def rename_one(root):
    path = root / 'annotations' / 'instances_train.json'
    path.write_text(path.read_text().replace('"rings"', '"Rings"'))


ANNOTATIONS = {
    'cut off': (
        json.JSONDecodeError,
        write('{"images": ['),
        'Expecting value',
    ),
    'empty': (json.JSONDecodeError, write(''), 'Expecting value'),
    'a list': (AssertionError, write('[]'), "<class 'list'> not supported"),
    'without keys': (KeyError, write('{}'), "'categories'"),
    'without boxes': (KeyError, edit(lambda a: a.pop('bbox')), "'bbox'"),
    'no box': (TypeError, edit(lambda a: a.update(bbox=None)), 'NoneType'),
    'boxes of words': (
        TypeError,
        edit(lambda a: a.update(bbox=['a'] * 4)),
        "'<' not supported between instances of 'int' and 'str'",
    ),
    'annotations of nothing': (
        TypeError,
        write('{"images": [], "categories": [], "annotations": null}'),
        'NoneType',
    ),
    'other classes': (
        UserError,
        rename,
        r'instances_train\.json has none of the classes of the config: '
        "'rows', .* here, but 'xchecks', .* there",
    ),
    'a class in another case': (
        UserError,
        rename_one,
        r'instances_train\.json has not all of the classes of the config: '
        "'rings' here, but 'Rings' there",
    ),
}


@pytest.mark.parametrize('case', ANNOTATIONS)
def test_broken_annotations(case, data, train):
    kind, change, message = ANNOTATIONS[case]
    change(data)
    train(SHAPES['mmdet'], data, kind=kind, message=message)


@pytest.fixture
def voc(data):
    """Options for the training set in the format of Pascal VOC."""
    root = data / 'voc'
    (root / 'Annotations').mkdir(parents=True)
    shutil.copytree(data / 'train', root / 'JPEGImages')
    path = data / 'annotations' / 'instances_train.json'
    coco = json.loads(path.read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    for image in coco['images']:
        objects = ''
        for annotation in coco['annotations']:
            if annotation['image_id'] == image['id']:
                x, y, w, h = map(int, annotation['bbox'])
                objects += (
                    f'<object><name>{names[annotation["category_id"]]}</name>'
                    f'<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>'
                    f'{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>'
                )
        (root / 'Annotations' / image['file_name']).with_suffix(
            '.xml'
        ).write_text(f'<a>{objects}</a>')
    stems = [Path(image['file_name']).stem for image in coco['images']]
    (root / 'all.txt').write_text('\n'.join(stems) + '\n')
    key = 'train_dataloader.dataset'
    return [
        f'{key}.type=VOCDataset',
        f'{key}.data_root={root}/',
        f'{key}.ann_file=all.txt',
        f'{key}.data_prefix.img=JPEGImages',
        f'{key}.data_prefix.sub_data_root=',
    ]


# Each the classes of the config, and what is said of those of the files.
VOC = {
    'Rows,Columns,Checks,Rings': "none of .*: 'Rows', .* here, but 'c.* there",
    'rows,columns,checks,Rings': "not all .*: 'Rings' here, but 'rings' there",
    'a,b,c,d': "none of .*: 'a', 'b', 'c', 'd' here, but 'c.* there",
}


@pytest.mark.parametrize('filtered', [False, True])
@pytest.mark.parametrize('classes', VOC)
def test_names_of_pascal_voc(classes, filtered, data, voc, train):
    key = 'train_dataloader.dataset'
    options = [*voc, f'{key}.metainfo.classes=({classes})']
    if filtered:  # of which MMEngine is left with nothing to build
        options.append(f'{key}.filter_cfg.filter_empty_gt=True')
    message = rf'voc/all\.txt has {VOC[classes]}'
    train(SHAPES['mmdet'], data, *options, kind=UserError, message=message)


def test_pascal_voc_trains(data, voc, train):
    said = train(SHAPES['mmdet'], data, *voc)
    assert re.search(r'Epoch\(train\).* loss: \d+\.\d+', said)
    assert 'has an object of the classes' not in said


def flat(value, *shape):
    def run(path):
        assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))

    return run


MAPS = {
    'ids out of range': (
        IndexError,
        flat(200, 96, 96),
        'Target 200 is out of bounds',
    ),
    'of another size': (
        RuntimeError,
        flat(1, 50, 50),
        'stack expects each tensor to be equal size',
    ),
    'of colours': (
        RuntimeError,
        flat(1, 96, 96, 3),
        'stack expects each tensor to be equal size',
    ),
    'missing': (
        FileNotFoundError,
        lambda p: p.unlink(),
        r'No such file.*semantic/train/shapes_000000\.png',
    ),
    'text': (
        UnidentifiedImageError,
        content(b'404'),
        'cannot identify image file',
    ),
}


@pytest.mark.parametrize('case', MAPS)
def test_broken_maps_of_classes(case, data, train):
    kind, change, message = MAPS[case]
    change(first(data, 'semantic/train/*.png'))
    train(SHAPES['mmseg'], data, kind=kind, message=message)


def a_file(root):
    root.rename(root.with_name('moved'))
    root.write_text('')


ROOTS = {
    'a file': (
        UserError,
        a_file,
        'train data not found.*is not there; make it with',
    ),
    'without images': (
        FileNotFoundError,
        lambda root: [path.unlink() for path in root.glob('train/*')],
        r'No such file.*train/shapes_\d+\.jpg',
    ),
    'without annotations': (
        UserError,
        lambda r: (r / 'annotations' / 'instances_train.json').unlink(),
        r'instances_train\.json is not there',
    ),
}


@pytest.mark.parametrize('case', ROOTS)
def test_a_data_root(case, data, train):
    kind, change, message = ROOTS[case]
    change(data)
    train(SHAPES['mmdet'], data, kind=kind, message=message)


def test_a_broken_crop_of_a_classifier(data, train):
    path = first(data, 'crops/train/*/*')
    path.write_bytes(b'404')
    train(
        SHAPES['mmpretrain'],
        data,
        kind=AssertionError,
        message=f'failed to load image: {path}',
    )


def test_other_classes_are_not_tested(data, tool, random_model):
    _, weights = random_model(SHAPES['mmdet'])
    annotations = data / 'annotations' / 'instances_val.json'
    text = annotations.read_text().replace('"name": "', '"name": "x')
    annotations.write_text(text)
    said = tool(
        *('tools/test.py', SHAPES['mmdet'], weights),
        *('--work-dir', data / 'run', '--cfg-options'),
        *data_options('mmdet', data),
        *NO_WORKERS,
        f'experiment_name={data.parent.name}',
        expect=2,
    )
    assert re.search(r'instances_val\.json has none of the', error_in(said))


def test_interrupted(capsys):
    def main():
        raise KeyboardInterrupt

    assert launch.run_tool(main) == 130
    assert 'interrupted; a training goes on with --resume' in (
        capsys.readouterr().err
    )
