"""Sweeps: one checkpoint, several budgets, table and JSON."""

import json
import re

import numpy as np
import pytest
import torch

from tests.tool_runs import NO_WORKERS, SHAPES, data_options, functions_of

TOOL = 'tools/analysis_tools/sweep_budget.py'
DEPTH = 'model.backbone.arch.num_layers'


@pytest.fixture
def sweep(tool, tmp_path, shapes, random_model):
    """A function that sweeps; it returns what was said, and the JSON."""

    def run(host, *arguments, options=(), expect=0):
        _, weights = random_model(SHAPES[host], {DEPTH: (1, 1, 1, 1)})
        out = tmp_path / 'out'
        said = tool(
            TOOL, SHAPES[host], weights, '--out', out, *arguments,
            '--cfg-options', *data_options(host, shapes),
            f'{DEPTH}=(1,1,1,1)', *NO_WORKERS, *options,
            f'experiment_name={tmp_path.name}', expect=expect,
        )  # fmt: skip
        if expect == 2:
            return re.findall('error: (.*)', said)[0]
        return said, json.loads((out / 'sweep.json').read_text())

    return run


def test_ratios(sweep, tmp_path):
    said, found = sweep('mmseg', '--ratio', 0.6, 0.8, '--num-images', 6,
                        '--repeats', 2, '--num-timed', 1)  # fmt: skip
    assert found['metric'] == 'mIoU'
    less, more = found['points']
    for asked, point in ((0.6, less), (0.8, more)):
        assert point['ratio_asked'] == asked
        assert point['ratio_calibrated'] == pytest.approx(asked, abs=0.02)
        ratio = point['metrics']['backbone/FLOPs_ratio']
        assert ratio == pytest.approx(asked, abs=0.1)
        assert point['routing'] == 'variance'
        assert 'backbone/FLOPs_ratio' in point['log']
        low, middle, high = point['seconds'].values()
        assert 0 < low <= middle <= high
        assert f'{point["metrics"]["mIoU"]:.4g}' in said
    assert less['price'] > more['price']
    assert found['seconds_dense']['median'] > 0
    out = tmp_path / 'out'
    assert f'wrote {out}/sweep.json' in said
    assert f'report.py {out}\n' in said


@pytest.mark.slow
@pytest.mark.parametrize('host', SHAPES)
def test_prices_of_all_hosts(sweep, host):
    """Even where, as untrained, nothing is detected."""
    said, found = sweep(host, '--price', 0, 9, '--repeats', 0)
    first, second = found['points']
    assert (first['price'], second['price']) == (0, 9)
    flops = [p['metrics']['backbone/GFLOPs'] for p in (first, second)]
    assert flops[0] > flops[1]
    assert first['seconds'] is None and found['seconds_dense'] is None
    metrics = dict(mmdet='coco/bbox_mAP', mmseg='mIoU')
    assert found['metric'] == metrics.get(host, 'accuracy/top1')


def test_without_a_hook_for_the_cost(sweep):
    options = ['default_hooks.cost=None']
    _, found = sweep('mmseg', '--price', 0, '--repeats', 0, options=options)
    (point,) = found['points']
    assert 0 < point['metrics']['backbone/FLOPs_ratio'] < 1


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


def test_what_is_interrupted_leaves_its_points(sweep, tmp_path, monkeypatch):
    """And a report shows them."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmdge.calibration.runs_at_prices', interrupt)
    said, found = sweep('mmseg', '--price', 0, '--num-images', 1, expect=130)
    assert 'interrupted' in said and found['metric'] == 'mIoU'
    report = functions_of('tools/analysis_tools/report.py')
    rows, problems = report.collect([tmp_path / 'out'])
    assert [row['metric'] for row in rows] == ['mIoU'] and not problems


def test_the_accuracy_is_the_metric_that_counts():
    tool = functions_of(TOOL)

    def of(*evaluations):
        points = [dict(metrics=dict.fromkeys(names)) for names in evaluations]
        return tool.accuracy_of(points)

    assert of(['aAcc', 'mIoU', 'backbone/GFLOPs']) == 'mIoU'
    assert of(['coco/bbox_mAP', 'coco/segm_mAP']) == 'coco/segm_mAP'
    assert of(['backbone/GFLOPs'], ['coco/bbox_mAP']) == 'coco/bbox_mAP'
    assert of(['backbone/GFLOPs', 'pascal_voc/mAP']) == 'pascal_voc/mAP'
    assert of(['backbone/GFLOPs']) in ('coco/segm_mAP', 'coco/bbox_mAP')


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        (['--ratio', '0'], [], "'0' is no ratio of FLOPs, a number between"),
        ([], [], 'one of the arguments --ratio --price is required'),
        (['--ratio', '0.01', '--num-images', '2'], [], 'ratio=0.01 cannot be'),
        (
            ['--ratio', '0.5', '--num-images', '2'],
            ['model.backbone.routing=finest'],
            'none of its blocks routes',
        ),
        (
            ['--price', '0'],
            ['test_dataloader.dataset.data_root=none/'],
            'test data not found',
        ),
    ],
)
def test_mistakes_are_named(sweep, arguments, options, message):
    assert message in sweep('mmseg', *arguments, options=options, expect=2)


def test_no_folder(sweep, tmp_path):
    (tmp_path / 'out').touch()
    with pytest.raises(FileExistsError, match=f"'{tmp_path}/out'"):
        sweep('mmseg', '--price', 0)
