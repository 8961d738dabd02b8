"""The scripts that the hosts bring along do what ours do, and ours theirs."""

import json
import pickle

import cv2
import pytest
import torch

from tests.forked import forked
from tests.tool_runs import (
    ON_CPU,
    ROOT,
    SHAPES,
    data_options,
    figures,
    metrics,
    own,
)

SEG_TTA = f"""
_base_ = {str(ROOT / SHAPES['mmseg'])!r}
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
"""
DENSE = 'backbone/GFLOPs_dense'


@pytest.fixture(scope='module', params=SHAPES)
def trained(request, shapes, tmp_path_factory):
    """A host, its config, options, and a training by each of two scripts."""
    host = request.param
    root = tmp_path_factory.mktemp(host)
    config = root / 'config.py'
    config.write_text(
        SEG_TTA
        if host == 'mmseg'
        else f'_base_ = {str(ROOT / SHAPES[host])!r}'
    )
    options = [
        '--cfg-options',
        *data_options(host, shapes),
        'train_dataloader.batch_size=4',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'param_scheduler.1.end=1',
        'default_hooks.logger.interval=1',
    ]
    if host == 'mmdet':
        options += ['model.test_cfg.score_thr=0.001']
    scripts = dict(own=own(host, 'train.py'), ours='tools/train.py')
    for name, script in scripts.items():
        forked(
            *(script, config, '--work-dir', root / name, *options), **ON_CPU
        )
    return host, config, options, root


def lines(work_dir):
    """What a training logged, without the time it took."""
    (log,) = work_dir.glob('2*/vis_data/scalars.json')
    return [figures(json.loads(line)) for line in log.read_text().splitlines()]


def checkpoint(folder):
    return torch.load(folder / 'epoch_1.pth', weights_only=False)


@pytest.mark.slow
def test_trainings_are_the_same(trained):
    _, _, _, root = trained
    own_lines, our_lines = lines(root / 'own'), lines(root / 'ours')
    assert len(own_lines) > 2 and own_lines == our_lines
    expected = checkpoint(root / 'own')['state_dict']
    found = checkpoint(root / 'ours')['state_dict']
    assert expected.keys() == found.keys()
    assert all(found[key].equal(value) for key, value in expected.items())


@pytest.mark.slow
def test_augmented_tests_are_the_same_and_cost_their_views(trained, tmp_path):
    host, config, options, root = trained
    scripts = dict(own=own(host, 'test.py'), ours='tools/test.py')
    found = {}
    for name, script in scripts.items():
        work_dir = tmp_path / name
        command = [script, config, root / 'ours' / 'epoch_1.pth', '--tta']
        if name == 'ours':
            command += ['--out', tmp_path / 'out.pkl']
        forked(*command, '--work-dir', work_dir, *options, **ON_CPU)
        (log,) = work_dir.glob('2*/2*.json')
        found[name] = figures(json.loads(log.read_text()))
    assert found['ours'] == pytest.approx(found['own'], rel=1e-9)
    # Two views of the size of the image: twice the dense FLOPs.
    once = lines(root / 'ours')[-1]
    assert found['ours'][DENSE] == pytest.approx(2 * once[DENSE], rel=1e-9)

    with (tmp_path / 'out.pkl').open('rb') as file:
        samples = pickle.load(file)
    predicted = dict(
        mmdet='pred_instances', mmseg='pred_sem_seg', mmpretrain='pred_score'
    )[host]
    assert len(samples) > 2
    assert all(predicted in sample for sample in samples)
    costs = [sample['backbone_cost']['dense'] for sample in samples]
    mean = sum(costs) / len(costs) / 1e9
    assert mean == pytest.approx(found['ours'][DENSE], rel=1e-9)


@pytest.mark.slow
def test_test_repeats_the_metric_to_the_last_digit(trained, tmp_path):
    """And draws the predictions."""
    _, _, _, root = trained
    expected = lines(root / 'ours')[-1]
    pictures = tmp_path / 'pictures'
    found = evaluated(trained, tmp_path, '--show-dir', pictures)
    drawn = [p for p in pictures.rglob('*') if p.suffix in ('.jpg', '.png')]
    assert len(drawn) >= 5  # images
    assert all(cv2.imread(str(path)) is not None for path in drawn)
    assert found['backbone/FLOPs_ratio'] < 1
    assert found == {key: expected[key] for key in found}


@pytest.mark.slow
def test_dense_twin_has_ratio_one(trained, tmp_path):
    twin = evaluated(trained, tmp_path, 'model.backbone.routing=finest')
    assert twin['backbone/FLOPs_ratio'] == 1
    assert twin['backbone/GFLOPs'] == pytest.approx(twin[DENSE], rel=1e-12)
    _, _, _, root = trained
    expected = lines(root / 'ours')[-1][DENSE]
    assert twin[DENSE] == pytest.approx(expected, rel=1e-12)


def evaluated(trained, work_dir, *more):
    """The entries of our test.py on the checkpoint."""
    _, config, options, root = trained
    weights = root / 'ours' / 'epoch_1.pth'
    forked(
        *('tools/test.py', config, weights, '--work-dir', work_dir),
        *(*options, *more),
        **ON_CPU,
    )
    return figures(metrics(work_dir, 'test'))
