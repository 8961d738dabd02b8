"""Operating points: measured, marked, chosen, and run by the host."""

import json
import re

import cv2
import numpy as np
import pytest
import torch

from mmdge.utils import timing
from tests.forked import forked
from tests.tool_runs import (
    NO_WORKERS,
    ON_CPU,
    SHAPES,
    data_options,
    figures,
    functions_of,
    metrics,
    own,
)

TOOL = 'tools/analysis_tools/operating_points.py'
SMALL = {'model.backbone.arch.num_layers': (1, 1, 1, 1)}
FEW = ('--num-images', 4, '--num-fit', 2, '--num-timed', 1, '--batch-size', 2)
FEW += ('--repeats', 1)


@pytest.fixture
def measure(tool, tmp_path, shapes, random_model):
    """A function that measures; it returns what was said, and the JSON."""
    made = {}

    def run(host, *arguments, options=(), model=SMALL, expect=0):
        if host not in made:
            made[host] = random_model(SHAPES[host], model)[1]
        out = tmp_path / 'out'
        changes = (f'{k}={v}'.replace(' ', '') for k, v in model.items())
        said = tool(
            TOOL, SHAPES[host], made[host], '--out', out, *FEW, *arguments,
            '--cfg-options', *data_options(host, shapes), *NO_WORKERS,
            *changes, *options, f'experiment_name={tmp_path.name}',
            expect=expect,
        )  # fmt: skip
        if expect == 2:
            return re.findall('error: (.*)', said)[0]
        return said, json.loads((out / 'points.json').read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_what_is_chosen_is_repeated_by_the_host(measure, tmp_path, host):
    said, found = measure(
        *(host, '--scale', 0.5, '--method', 'error', '--ratio', 0.8),
        *('--max-drop', 100, '--repeats', 0),
    )
    points = {
        (p['scale'], p['method'], p['ratio_asked']): p for p in found['points']
    }
    full, small = points.values()
    assert list(points) == [(1, 'dense', None), (0.5, 'error', 0.8)]
    # Half of the side is a quarter of the area.
    for name in ('backbone/GFLOPs_dense', 'backbone/GFLOPs'):
        part = 0.25 if name.endswith('dense') else 0.2
        flops = part * full['metrics'][name]
        assert small['metrics'][name] == pytest.approx(flops, rel=0.25)
    assert small['metrics']['backbone/GFLOPs'] < small['model_GFLOPs']
    assert 'The backbone takes' in said and 'at a ratio of 0.8: ' in said
    assert all(f'{p["value"]:.2f}' in said for p in points.values())
    assert cv2.imread(str(tmp_path / 'out/points.png')) is not None
    assert 'chosen is scale 0.5 error 0.8, ' in said
    config, weights = re.findall(r'tools/test.py (\S+) (\S+)', said)[0]
    run = tmp_path / 'run'
    script = own(host, 'test.py')
    forked(script, config, weights, '--work-dir', run, **ON_CPU)
    repeated = figures(metrics(run, 'test'))
    assert repeated and repeated.items() <= small['metrics'].items()


@pytest.mark.slow
def test_a_plain_vit_runs_as_any_method(tool, tmp_path, shapes, random_model):
    config = 'configs/shapes/retinanet_dynamic-vit_simplefpn_shapes.py'
    depth = {'model.backbone.arch.num_layers': 2}
    depth['model.backbone.pruning_loc'] = [1]
    _, weights = random_model(config, depth)
    said = tool(
        *(TOOL, config, weights, '--out', tmp_path / 'out', *FEW),
        *('--scale', 1, '--method', 'dense', 'mixed', 'mixed-random'),
        *('--ratio', 0.6, '--repeats', 0, '--cfg-options'),
        *data_options('mmdet', shapes),
        *NO_WORKERS,
        *(f'{key}={value}' for key, value in depth.items()),
    )
    found = json.loads((tmp_path / 'out/points.json').read_text())['points']
    assert [p['method'] for p in found] == ['dense', 'mixed', 'mixed-random']
    for point in found[1:]:
        assert point['ratio_calibrated'] == pytest.approx(0.6, abs=0.02)
    assert 'chosen is scale 1 mixed 0.6' in said
    written = re.findall(r'tools/test.py (\S+) (\S+)', said)[0]
    forked(own('mmdet', 'test.py'), *written, '--work-dir', tmp_path, **ON_CPU)
    repeated = figures(metrics(tmp_path, 'test'))
    assert repeated and repeated.items() <= found[1]['metrics'].items()


def test_a_cf_vit_that_classifies(tool, tmp_path, shapes, random_model):
    """Its own price meets a ratio; its head knows no other method."""
    config = 'configs/shapes/cf-vit_shapes-crops.py'
    depth = {'model.backbone.arch.num_layers': 2}
    _, weights = random_model(config, depth)

    def run(*arguments, **kwargs):
        return tool(
            *(TOOL, config, weights, '--out', tmp_path / 'out', *FEW),
            *('--scale', 1, '--repeats', 0, *arguments, '--cfg-options'),
            *data_options('mmpretrain', shapes),
            *NO_WORKERS,
            *(f'{key}={value}' for key, value in depth.items()),
            **kwargs,
        )

    said = run('--method', 'own', 'mixed', expect=2)
    assert '--method mixed: mmdge.CFViT can run as dense, own alone' in said
    run('--method', 'own', '--ratio', 0.6, '--num-images', 16)
    (point,) = json.loads((tmp_path / 'out/points.json').read_text())['points']
    assert point['ratio_calibrated'] == pytest.approx(0.6, abs=0.05)
    assert 0 < point['price'] < 1


@pytest.mark.slow
def test_it_goes_on_where_it_was(measure, tmp_path, monkeypatch):
    """A report shows what there is."""
    arguments = 'mmseg', '--scale', 1, '--method', 'error', '--ratio', 0.7
    options = ['default_hooks.cost=None']
    with monkeypatch.context() as patch:
        patch.setattr(timing, 'interleave', Interrupted(timing.interleave))
        said, found = measure(*arguments, options=options, expect=130)
    assert 'evaluating scale 1 error 0.7' in said
    (point,) = found['points']
    assert point['ratio_calibrated'] == pytest.approx(0.7, abs=0.02)
    assert 'backbone/FLOPs_ratio' in point['log']
    report = functions_of('tools/analysis_tools/report.py')
    rows, problems = report.collect([tmp_path / 'out'])
    assert [row['metric'] for row in rows] == ['mIoU'] and not problems

    said, found = measure(*arguments, options=options)
    assert 'going on with the 1 points' in said
    assert 'evaluating' not in said and 'timing 1 points' in said
    (timed,) = found['points']
    assert {key: timed[key] for key in point} == point
    low, middle, high = timed['seconds'].values()
    assert 0 < low <= middle <= high and timed['seconds_batch']
    message = measure(*arguments, '--metric', 'AP', options=options, expect=2)
    assert message.startswith(
        '--metric AP is none of those that the config has: aAcc, mIoU'
    )
    said, again = measure(*arguments, options=options)
    assert 'timing' not in said and again == found
    options = ['model.backbone.granularities=[1,2]']
    message = measure(*arguments, options=options, expect=2)
    assert 'points.json is of another config or checkpoint' in message


class Interrupted:
    """Timing that is interrupted, but for the first time."""

    def __init__(self, interleave):
        self.runs = iter([interleave])

    def __call__(self, *args):
        for interleave in self.runs:
            return interleave(*args)
        raise KeyboardInterrupt


def test_milliseconds_are_met(measure, monkeypatch):
    """As if time went by FLOPs alone."""

    def interleave(runs, rounds, device):
        times = {}
        for name, run in runs.items():
            run()
            ratio = 0.5
            if hasattr(run, 'args'):
                ratio = run.args[0].cost.ratio.mean().item()
            times[name] = [0.01 + 0.1 * ratio for _ in rounds]
        return times

    monkeypatch.setattr(timing, 'interleave', interleave)
    _, found = measure(
        *('mmseg', '--scale', 1, '--method', 'dense', 'error'),
        *('--ratio', 0.8, '--ms', 80),
    )
    (point,) = (p for p in found['points'] if 'ms_asked' in p)
    assert point['ratio_asked'] not in (None, 0.8)
    assert point['seconds']['median'] == pytest.approx(0.08, rel=0.1)


def test_a_hosts_own_backbone(measure):
    """It is exchanged, and made dynamic unless its config says otherwise."""
    model = {
        'model.backbone._delete_': True,
        'model.backbone.type': 'mmdet.PyramidVisionTransformer',
        'model.backbone.embed_dims': 32,
        'model.backbone.num_layers': (1, 1, 1, 1),
        'model.backbone.num_heads': (1, 2, 4, 8),
        'model.backbone.pretrain_img_size': 128,
    }
    _, found = measure(
        *('mmseg', '--scale', 1, '--ratio', 0.8),
        *('--repeats', 0),
        model=model,
    )
    dense, routed = (p['metrics']['backbone/GFLOPs'] for p in found['points'])
    assert routed == pytest.approx(0.8 * dense, rel=0.25)


def test_a_model_without_a_dynamic_form(measure):
    model = {
        'model.backbone._delete_': True,
        'model.backbone.type': 'VisionTransformer',
        'model.backbone.arch': 'deit-tiny',
        'model.backbone.img_size': 96,
        'model.backbone.pre_norm': True,
        'model.head.in_channels': 192,
    }
    said, found = measure(
        *('mmpretrain', '--scale', 0.5, '--max-drop', 100),
        model=model,
    )
    assert 'mmpretrain.VisionTransformer with pre_norm=True has no' in said
    assert 'measured is what the scale of its input alone gives' in said
    full, small = found['points']
    assert (full['scale'], small['scale']) == (1, 0.5)
    flops = [p['metrics']['backbone/GFLOPs'] for p in (full, small)]
    assert flops[1] == pytest.approx(flops[0] / 4, rel=0.3)
    assert full['model_GFLOPs'] > flops[0]
    assert 'chosen is scale 0.5 dense' in said
    arguments = 'mmpretrain', '--method', 'error'
    said = measure(*arguments, model=model, expect=2)
    assert said == '--method error: VisionTransformer can run as dense alone'


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        (['--ratio', '0'], [], "'0' is no ratio of FLOPs, a number between"),
        (['--scale', '0'], [], "'0' is no scale of at most 4"),
        (['--ms', '9'], [], '--ms needs times'),
        (
            ['--scale', '1', '0.1'],
            [],
            '--scale 0.1 leaves an image of 13 pixels, less than a region of '
            'the backbone, 16',
        ),
        (
            ['--scale', '1', '--method', 'error', '--ratio', '.01'],
            [],
            'scale 1 error: ratio=0.01 cannot be met',
        ),
        ([], ['test_dataloader.dataset.data_root=none/'], 'test data not'),
        ([], ['test_evaluator=None'], 'has no test_evaluator'),
    ],
)
def test_mistakes_are_named(measure, arguments, options, message):
    arguments = '--repeats', '0', *arguments
    assert message in measure('mmseg', *arguments, options=options, expect=2)


def test_only_single_numbers_are_kept():
    tool = functions_of(TOOL)
    metrics = {
        'mIoU': np.float32(5),
        'epoch': 3,
        'accuracy/top1': torch.tensor(0.5),
        'classwise': [0.1, 0.2],
        'confusion': torch.ones(2, 2),
        'name': 'x',
        'none': None,
    }
    kept = {'mIoU': 5.0, 'epoch': 3.0, 'accuracy/top1': 0.5}
    assert tool.scalars(metrics) == kept


def test_the_accuracy_is_the_metric_that_counts():
    accuracy_of = functions_of(TOOL).accuracy_of
    assert accuracy_of(['aAcc', 'mIoU', 'backbone/GFLOPs']) == 'mIoU'
    both = ['coco/bbox_mAP', 'coco/segm_mAP']
    assert accuracy_of(both) == 'coco/segm_mAP'
    assert accuracy_of(['near/mIoU', 'far/mIoU']) == 'near/mIoU'
    assert accuracy_of(['backbone/GFLOPs', 'pascal_voc/mAP']) == (
        'pascal_voc/mAP'
    )
    assert accuracy_of(['backbone/GFLOPs']) == 'coco/segm_mAP'
