"""A published checkpoint: small, safe, and as good as it says."""

import hashlib
import json
import re

import pytest
import torch

from tests.forked import forked
from tests.tool_runs import (
    SHAPES,
    data_options,
    figures,
    metrics,
)

CONFIG = SHAPES['mmpretrain']


@pytest.fixture(scope='module')
def options(shapes):
    return [
        '--cfg-options',
        *data_options('mmpretrain', shapes),
        'train_dataloader.batch_size=8',
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.max_keep_ckpts=-1',
        'default_hooks.ema.type=EMAHook',
        'default_hooks.ema.momentum=0.5',
    ]


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('train')
    forked('tools/train.py', CONFIG, '--work-dir', work_dir, *options)
    return work_dir


@pytest.fixture
def publish(tool):
    def run(*arguments, expect=0):
        said = tool('tools/publish_model.py', *arguments, expect=expect)
        begin = 'error: ' if expect else 'published: '
        (line,) = [x for x in said.splitlines() if x.startswith(begin)]
        return line

    return run


def evaluations(work_dir):
    """The entries of each evaluation of a training."""
    (log,) = work_dir.glob('2*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [figures(line) for line in lines if 'backbone/GFLOPs' in line]


@pytest.mark.slow
def test_it_repeats_the_metric_of_its_own_epoch(
    trained, options, publish, tmp_path
):
    second, last = evaluations(trained)
    assert second != last
    said = publish(trained / 'epoch_2.pth', tmp_path / 'a.b' / 'cls.pth')
    (path,) = (tmp_path / 'a.b').iterdir()
    assert said == f'published: {path}'
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert re.fullmatch(rf'cls_20\d{{6}}-{digits}\.pth', path.name)

    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    meta = content['meta']
    assert meta['epoch'] == 2 and meta['metrics'] == second
    assert 'mmdge.DGEPVT' in meta['cfg']
    assert set(meta['revision']) == {'training', 'publishing'}
    whole = trained / 'epoch_2.pth'
    assert path.stat().st_size < 0.4 * whole.stat().st_size

    work_dir = tmp_path / 'test'
    forked('tools/test.py', CONFIG, path, '--work-dir', work_dir, *options)
    assert figures(metrics(work_dir, 'test')) == second


def test_an_epoch_without_evaluation_needs_a_test(trained, publish, tmp_path):
    said = publish(trained / 'epoch_1.pth', tmp_path / 'a.pth', expect=2)
    assert 'holds 0 evaluations' in said and '--metrics' in said
    assert not list(tmp_path.iterdir())

    found = tmp_path / 'found.json'
    found.write_text(json.dumps({'accuracy/top1': 50.0, 'time': 0.1}))
    publish(trained / 'epoch_1.pth', tmp_path / 'a.pth', '--metrics', found)
    (path,) = tmp_path.glob('a_*.pth')
    meta = torch.load(path, weights_only=True)['meta']
    assert meta['metrics'] == {'accuracy/top1': 50.0}


def test_a_file_without_metrics_is_named(trained, publish, tmp_path):
    found = tmp_path / 'found.json'
    found.write_text('{"time": 0.1}')
    arguments = (trained / 'epoch_1.pth', tmp_path / 'a.pth')
    error = publish(*arguments, '--metrics', found, expect=2)
    assert 'holds no metric' in error and str(found) in error


def test_weights_alone_are_not_enough(publish, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'w': torch.zeros(1)}}, path)
    said = publish(path, tmp_path / 'a.pth', expect=2)
    assert 'does not say by which config it was trained' in said


def test_a_config_inside_a_checkpoint_is_not_run(publish, tmp_path):
    marker = tmp_path / 'marker'
    meta = dict(cfg=f'x = open({str(marker)!r}, "w").close()', epoch=1, iter=1)
    weights = dict(w=torch.zeros(2))
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'a.pth')
    said = publish(tmp_path / 'a.pth', tmp_path / 'b.pth', expect=2)
    assert 'holds 0 evaluations' in said
    assert not marker.exists()
