"""What people get wrong, and files that are broken: one line each.

The line names what is wrong and what to do; nothing that was there is
overwritten. Checkpoints have tests/test_tools/test_checkpoints.py.
"""

import json
import re

import cv2
import numpy as np
import pytest
import torch
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
    """A function that trains an epoch; if that fails, what was there stays."""

    def run(config, root, *options, expect=0, trained=False):
        work_dir = tmp_path / 'run'
        work_dir.mkdir()
        kept = [work_dir / n for n in ('epoch_1.pth', 'last_checkpoint')]
        for path in kept:
            path.write_text(f'{work_dir}/epoch_1.pth')
        host = next(h for h in SHAPES if SHAPES[h] == config)
        said = tool(
            *('tools/train.py', config, '--work-dir', work_dir),
            '--cfg-options',
            *data_options(host, root),
            *NO_WORKERS,
            'train_dataloader.batch_size=2',
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=1',
            'model.test_cfg.score_thr=0.0' if host == 'mmdet' else 'epoch=1',
            # Two runs of one name within a second would share a logger.
            f'experiment_name={tmp_path.name}',
            *options,
            expect=expect,
        )
        assert 'has checkpoints of an earlier training' in said
        for path in kept if expect and not trained else ():
            assert path.read_text() == f'{work_dir}/epoch_1.pth'
        return said

    return run


@pytest.fixture
def raised(monkeypatch):
    """The types of the errors that tools said in one line."""
    types, say = [], launch.in_one_line

    def note(err):
        types.append(type(err))
        return say(err)

    monkeypatch.setattr(launch, 'in_one_line', note)
    return types


CONFIGS = {
    'backbone type': (
        KeyError,
        [f'{BACKBONE}type=mmdge.DGEPTV'],
        r"type='mmdge\.DGEPTV' of the config is unknown; there is "
        r'.*mmdge\.DGEPVT',
    ),
    'arch name': (
        ValueError,
        [f'{BACKBONE}arch=tinny'],
        "cannot build mmdge.DGEPVT: arch='tinny' is unknown; allowed are "
        "'tiny', 'small'",
    ),
    'arch number': (
        ValueError,
        [f'{BACKBONE}arch=3'],
        'arch must be a name or a dict',
    ),
    'routing name': (
        ValueError,
        [f'{BACKBONE}routing=varience'],
        "routing='varience' is unknown; allowed are 'finest', 'learned'",
    ),
    'granularities order': (
        ValueError,
        [f'{BACKBONE}granularities=(4,2,1)'],
        r'granularities=\(4, 2, 1\) must be positive and ascending',
    ),
    'granularities that do not divide': (
        ValueError,
        [f'{BACKBONE}granularities=(1,3,4)'],
        r'each must divide the last, e\.g\. \(1, 2, 4\)',
    ),
    'granularities of letters': (
        ValueError,
        [f'{BACKBONE}granularities=abc'],
        "granularities='abc' must be one set of integers",
    ),
    'price': (
        ValueError,
        [f'{BACKBONE}price=cheap'],
        "price must be a number, but got 'cheap'",
    ),
    'argument': (
        TypeError,
        [f'{BACKBONE}depth=50'],
        "cannot build mmdge.DGEPVT: .*unexpected keyword argument 'depth'",
    ),
    'out_indices': (
        ValueError,
        [f'{BACKBONE}out_indices=(0,7)'],
        r'out_indices=\(0, 7\) must be .* among 0 to 3',
    ),
    'frozen_stages': (
        ValueError,
        [f'{BACKBONE}frozen_stages=9'],
        'frozen_stages=9 must be an integer of at most 4',
    ),
    'drop_path_rate': (
        ValueError,
        [f'{BACKBONE}drop_path_rate=2'],
        r'drop_prob must be in \[0, 1\)',
    ),
    'budget': (
        ValueError,
        ['custom_hooks.0.budget=50'],
        r'cannot build mmdge\.CostHook: budget, .* must be in \(0, 1\], but '
        'got 50',
    ),
    'hook': (
        KeyError,
        ['custom_hooks.0.type=mmdge.CostHok'],
        r"type='mmdge\.CostHok' of the config is unknown; there is mmdge\."
        'CostHook',
    ),
    'metric without the hook': (
        ValueError,
        ['custom_hooks=[]'],
        r"without backbone_cost; add dict\(type='mmdge\.CostHook'",
    ),
    'data set': (
        KeyError,
        ['train_dataloader.dataset.type=CocoDatset'],
        r"type='CocoDatset' of the config is unknown; there is "
        r'.*mmdet\.CocoDataset',
    ),
    'transform': (
        KeyError,
        [f'{PIPELINE}0.type=LoadImageFromFil'],
        r"type='LoadImageFromFil' of the config is unknown; there is",
    ),
    'loop': (
        KeyError,
        ['train_cfg.type=EpochBasedLoop'],
        "type='EpochBasedLoop' of the config is unknown",
    ),
    'optimizer': (
        TypeError,
        ['optim_wrapper.optimizer.momentum=0.9'],
        "cannot build AdamW: .*unexpected keyword argument 'momentum'",
    ),
    'number of classes': (
        RuntimeError,
        ['model.bbox_head.num_classes=2'],
        'have a class that the model does not: set num_classes',
    ),
    'epochs': (
        ValueError,
        ['train_cfg.max_epochs=many'],
        r"cannot build EpochBasedTrainLoop: invalid literal .*'many'",
    ),
    'batch of none': (
        ValueError,
        ['train_dataloader.batch_size=0'],
        'batch_size should be a positive integer',
    ),
    'learning rate': (
        ValueError,
        ['optim_wrapper.optimizer.lr=-1'],
        r'cannot build AdamW: Invalid learning rate: -1',
    ),
    'learning rate with a comma': (
        TypeError,
        ['optim_wrapper.optimizer.lr=0,0001'],
        'cannot build AdamW: ',
    ),
    'number of checkpoints': (
        ValueError,
        ['default_hooks.checkpoint.max_keep_ckpts=abc'],
        'SafeCheckpointHook: max_keep_ckpts must be an integer',
    ),
    'half a training': (
        ValueError,
        ['optim_wrapper=None'],
        'the config does not fit: .*optim_wrapper should be',
    ),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_a_config(case, data, train, raised):
    kind, options, message = CONFIGS[case]
    said = train(
        SHAPES['mmdet'],
        data,
        *options,
        expect=2,
        trained=case == 'metric without the hook',  # which ends the epoch
    )
    assert re.search(message, error_in(said)) and raised == [kind]


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
def test_a_config_file(case, tmp_path, tool, raised):
    name, content, message = FILES[case]
    (tmp_path / name).write_text(content)
    said = tool('tools/train.py', tmp_path / name, expect=2)
    error = error_in(said)
    assert re.search(message, error) and str(tmp_path / name) in error
    assert raised == [UserError]


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
def test_a_broken_image(case, workers, data, train, raised):
    kind, change, message = BROKEN_IMAGES[case]
    path = first(data, 'train/*.jpg')
    change(path)
    said = train(
        SHAPES['mmdet'],
        data,
        f'train_dataloader.num_workers={workers}',
        expect=2,
    )
    error = error_in(said)
    assert re.search(f'cannot load a sample.*{message}', error)
    assert raised == [kind]
    # OpenCV doesn't name it, and where another process loads, we cannot.
    named = 'num_workers=0' if (workers, case) == (1, 'empty') else str(path)
    assert named in error


@pytest.mark.parametrize(
    'write',
    [
        draw(1, 1, 3),
        draw(1, 5000, 3),
        draw(5000, 1, 3),
        draw(96, 96),
        draw(96, 96, 4),
        draw(96, 96, 3, dtype=np.uint16),
    ],
    ids=['1x1', '1x5000', '5000x1', 'grey', 'RGBA', '16 bit'],
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


ANNOTATIONS = {
    'cut off': (
        json.JSONDecodeError,
        write('{"images": ['),
        'JSON|Expecting value',
    ),
    'empty': (json.JSONDecodeError, write(''), 'Expecting value'),
    'a list': (AssertionError, write('[]'), "<class 'list'> not supported"),
    'without keys': (KeyError, write('{}'), "no 'categories'"),
    'without boxes': (KeyError, edit(lambda a: a.pop('bbox')), "no 'bbox'"),
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
        'has none of the classes of the config',
    ),
}


@pytest.mark.parametrize('case', ANNOTATIONS)
def test_broken_annotations(case, data, train, raised):
    kind, change, message = ANNOTATIONS[case]
    change(data)
    error = error_in(train(SHAPES['mmdet'], data, expect=2))
    assert re.search(message, error)
    assert 'instances_train.json' in error and raised == [kind]


def flat(value, *shape):
    def run(path):
        assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))

    return run


MAPS = {
    'ids out of range': (
        IndexError,
        flat(200, 96, 96),
        'Target 200 is out of bounds.*set num_classes, or ignore_index',
    ),
    'of another size': (
        RuntimeError,
        flat(1, 50, 50),
        'differ in size: an image and its annotation do',
    ),
    'of colours': (RuntimeError, flat(1, 96, 96, 3), 'differ in size'),
    'missing': (
        FileNotFoundError,
        lambda p: p.unlink(),
        'cannot load a sample.*No such file',
    ),
    'text': (UnidentifiedImageError, content(b'404'), 'cannot load a sample'),
}


@pytest.mark.parametrize('case', MAPS)
def test_broken_maps_of_classes(case, data, train, raised):
    kind, change, message = MAPS[case]
    change(first(data, 'semantic/train/*.png'))
    error = error_in(train(SHAPES['mmseg'], data, expect=2))
    assert re.search(message, error) and raised == [kind]


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
        'cannot load a sample.*No such file',
    ),
    'without annotations': (
        UserError,
        lambda r: (r / 'annotations' / 'instances_train.json').unlink(),
        r'instances_train\.json is not there',
    ),
}


@pytest.mark.parametrize('case', ROOTS)
def test_a_data_root(case, data, train, raised):
    kind, change, message = ROOTS[case]
    change(data)
    error = error_in(train(SHAPES['mmdet'], data, expect=2))
    assert re.search(message, error) and raised == [kind]


def test_a_broken_crop_of_a_classifier(data, train):
    path = first(data, 'crops/train/*/*')
    path.write_bytes(b'404')
    error = error_in(train(SHAPES['mmpretrain'], data, expect=2))
    assert re.search('cannot load a sample', error) and str(path) in error


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


def test_memory_of_a_gpu_that_runs_out(raised, capsys):
    def main():
        raise torch.OutOfMemoryError(
            'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...'
        )

    assert launch.run_tool(main) == 2
    assert raised == [torch.OutOfMemoryError]
    assert capsys.readouterr().err == (
        'error: CUDA out of memory. Lower the batch_size, train with --amp, '
        'or set with_cp=True of the backbone\n'
    )


def test_interrupted(capsys):
    def main():
        raise KeyboardInterrupt

    assert launch.run_tool(main) == 130
    assert 'interrupted; a training goes on with --resume' in (
        capsys.readouterr().err
    )


def test_a_mark_that_may_not_be_written(capsys):
    def main():
        raise PermissionError(13, 'Permission denied', 'w/last_checkpoint')

    assert launch.run_tool(main) == 2
    said = capsys.readouterr().err
    assert 'Permission denied (w/last_checkpoint). Make it writable' in said
