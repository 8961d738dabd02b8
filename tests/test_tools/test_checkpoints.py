"""Checkpoints through the tools: what fits runs, what doesn't is one line."""

import re

import pytest
import torch

from mmdge.datasets import write_shapes
from mmdge.models import DGEPVT, DGEDeiT
from mmdge.models.architectures import LAYOUTS
from mmdge.models.weights import from_ours
from mmdge.safe_training import read_checkpoint
from tests import hostile
from tests.forked import forked
from tests.tool_runs import (
    NO_WORKERS,
    SHAPES,
    data_options,
    error_in,
)

CONFIG = SHAPES['mmdet']
ARCH = dict(
    embed_dims=(32, 64, 128, 256),
    num_layers=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
)
VTPACK = next(la for la in LAYOUTS if la.name == 'vtpack')


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    shapes = tmp_path_factory.mktemp('shapes')
    write_shapes(shapes, num_train=4, num_val=2, size=96)
    return [
        *data_options('mmdet', shapes),
        'train_cfg.max_epochs=1',
        *NO_WORKERS,
    ]


def commands(way, path, work_dir, options):
    """How a file reaches the model: three ways through the tools."""
    # Two runs of one name within a second would share a logger.
    options = [*options, f'experiment_name={way}-{work_dir.parent.name}']
    if way == 'test':
        return ['tools/test.py', CONFIG, path, '--work-dir', work_dir,
                '--cfg-options', *options]  # fmt: skip
    if way == 'load_from':
        options = [*options, f'load_from={path}']
    else:
        key = 'model.backbone.init_cfg'
        options = [*options, f'{key}.type=Pretrained',
                   f'{key}.checkpoint={path}']  # fmt: skip
    return ['tools/train.py', CONFIG, '--work-dir', work_dir,
            '--cfg-options', *options]  # fmt: skip


WAYS = ('init_cfg', 'load_from', 'test')


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('case', hostile.CASES, ids=lambda c: c.__name__)
def test_what_is_no_checkpoint(case, way, tmp_path, options, tool):
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    case(path, marker)
    said = tool(*commands(way, path, tmp_path / 'run', options), expect=2)
    error = error_in(said)
    assert re.search(hostile.CASES[case], error) and str(path) in error
    assert not marker.exists()
    assert not (tmp_path / 'run').exists()


def backbone(**kwargs):
    kwargs = dict(
        dict(arch=ARCH, routing='learned', pretrain_img_size=256), **kwargs
    )
    return DGEPVT(**kwargs).state_dict()


def missing():
    state = backbone()
    del state['block2.0.norm1.weight']
    return state


MISFITS = {
    'wrong architecture': (
        lambda: backbone(arch='tiny'),
        r'of other shapes \(pos_embed1 \(1, 4096, 64\) in place of '
        r"\(1, 4096, 32\).*set arch='tiny'",
    ),
    'another family': (
        lambda: DGEDeiT('tiny').state_dict(),
        "holds a ViT.*, or set type='mmdge.DGEViT'",
    ),
    'missing key': (
        missing,
        r'lacks 1 of its entries \(block2\.0\.norm1\.weight \(64,\)\); use '
        'weights of this architecture',
    ),
    'extra key': (
        lambda: dict(backbone(), gamma=torch.zeros(1)),
        r'holds 1 unknown \(gamma\); use weights of this architecture',
    ),
    'other granularities': (
        lambda: from_ours(backbone(granularities=(1, 2, 8)), VTPACK)[0],
        r'granularities \(1, 2, 8\).*set granularities=\(1, 2, 8\)',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('misfit', MISFITS)
def test_what_does_not_fit(misfit, way, tmp_path, options, tool):
    build, message = MISFITS[misfit]
    state = build()
    if way != 'init_cfg':
        state = {f'backbone.{key}': value for key, value in state.items()}
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    options = [*options, 'model.backbone.routing=learned']
    command = commands(way, tmp_path / 'a.pth', tmp_path / 'run', options)
    assert re.search(message, error_in(tool(*command, expect=2)))
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_a_process_of_its_own_refuses_code(way, tmp_path, options):
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    hostile.code_by_getattr(path, marker)
    said = forked(*commands(way, path, tmp_path / 'run', options), expect=2)
    assert 'is refused' in error_in(said)
    assert not marker.exists()


@pytest.mark.slow
def test_training_goes_on_from_what_it_saved(tmp_path, options, tool):
    """Optimizer, schedule, logs and averaged weights are read safely."""
    source = {'state_dict': backbone(routing='finest')}
    torch.save(source, tmp_path / 'a.pth')
    run = tmp_path / 'run'
    options = [
        *options,
        'train_cfg.val_interval=9',
        'default_hooks.ema.type=EMAHook',
    ]
    said = tool(*commands('init_cfg', tmp_path / 'a.pth', run, options))
    assert 'DGEPVT from the official PVT layout: 156 entries loaded' in said
    options[options.index('train_cfg.max_epochs=1')] = 'train_cfg.max_epochs=2'
    train = commands('load_from', run / 'epoch_1.pth', run, options)
    # A resumed run takes its checkpoint from the work dir by itself.
    train[-1] = 'resume=True'
    said = tool(*train)
    assert 'resumed epoch: 1, iter: 1' in said
    first, second = (read_checkpoint(run / f'epoch_{n}.pth') for n in (1, 2))
    key = 'backbone.block1.0.router.num_updates'
    assert first['state_dict'][key] == 1 and second['state_dict'][key] == 2
    name = 'ema_state_dict'
    assert first[name].keys() == second[name].keys()


@pytest.mark.slow
def test_a_training_of_another_model_is_not_gone_on_with(
    tmp_path, options, tool
):
    run = tmp_path / 'run'
    command = ['tools/train.py', CONFIG, '--work-dir', run, '--resume']
    command += ['--cfg-options', *options, 'train_cfg.val_interval=9']
    tool(*command, f'experiment_name={tmp_path.name}-1')
    before = (run / 'epoch_1.pth').read_bytes()
    changed = {
        'num_classes=9': r'retina_cls\.\w+ is \(\d.* there and \(\d.* here',
        'stacked_convs=3': r'\S+ is missing there and \(\d.* here',
        'stacked_convs=1': r'\S+ is \(\d.* there and missing here',
    }
    for number, (option, message) in enumerate(changed.items(), 2):
        said = tool(
            *(*command, f'experiment_name={tmp_path.name}-{number}'),
            f'model.bbox_head.{option}',
            'train_cfg.max_epochs=2',
            expect=2,
        )
        assert re.search(
            rf'cannot resume from .*of another model: bbox_head\.{message}; '
            'resume with the config of that training',
            error_in(said),
        )
    assert (run / 'epoch_1.pth').read_bytes() == before
