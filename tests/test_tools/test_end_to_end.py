"""Real runs of the tools, through mmdet, on small data.

The first training starts as a user would start it.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.forked import forked, forks, two_forked
from tests.tool_runs import (
    ON_CPU,
    ROOT,
    data_options,
    figures,
    metrics,
    python,
)

CONFIG = 'configs/shapes/retinanet_dge-pvt_fpn_shapes.py'
METRICS = ('coco/bbox_mAP', 'backbone/GFLOPs', 'backbone/FLOPs_ratio')


@pytest.fixture(scope='module')
def options(shapes):
    """Point the config at the small data set; nothing else changes."""
    return [
        '--cfg-options',
        *data_options('mmdet', shapes),
        'default_hooks.granularity.num_images=4',
        'train_dataloader.batch_size=4',
        'train_cfg.max_epochs=2',
        'train_cfg.val_interval=2',
        'param_scheduler.0.end=2',
        'model.test_cfg.score_thr=0.001',
    ]


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('train')
    log = python('tools/train.py', CONFIG, '--work-dir', work_dir, *options)
    return work_dir, log


@pytest.mark.slow
def test_training_logs_cost_and_metric_in_one_line(trained):
    work_dir, log = trained
    assert re.search(r'Epoch\(train\).*flops_ratio: .*region_spread: ', log)
    (line,) = re.findall(r'Epoch\(val\).*coco/bbox_mAP: .*', log)
    assert all(f'{key}: ' in line for key in METRICS)
    entries = metrics(work_dir, 'val')
    assert all(key in entries for key in METRICS)
    assert list(work_dir.glob('2*/vis_data/vis_image/granularity_*.png'))


@pytest.mark.slow
def test_two_processes_train_and_report_alike(trained, options, tmp_path):
    work_dir, _ = trained
    train = ['tools/train.py', CONFIG, '--work-dir', tmp_path / 'train']
    two_forked(*train, *options, **ON_CPU)
    expected = metrics(work_dir, 'val')
    entries = metrics(tmp_path / 'train', 'val')
    assert entries.keys() == expected.keys()
    # The same images were counted: not one more, not one less.
    dense = 'backbone/GFLOPs_dense'
    assert entries[dense] == pytest.approx(expected[dense], rel=1e-12)

    checkpoint = tmp_path / 'train' / 'epoch_2.pth'
    forked(
        'tools/test.py',
        CONFIG,
        checkpoint,
        '--work-dir',
        tmp_path / 'test',
        *options,
    )
    alone = figures(metrics(tmp_path / 'test', 'test'))
    assert alone == pytest.approx(figures(entries), rel=1e-9)


@pytest.mark.slow
def test_get_flops_counts_real_images(trained, options, tmp_path):
    work_dir, _ = trained
    out = forked(
        'tools/analysis_tools/get_flops.py',
        CONFIG,
        work_dir / 'epoch_2.pth',
        '--json',
        tmp_path / 'flops.json',
        *options,
    )
    assert "PyTorch's counter: equal on every image" in out
    report = json.loads((tmp_path / 'flops.json').read_text())
    assert report['num_images'] == 5
    assert set(report['parts']) == {'backbone', 'neck', 'head'}
    assert min(part['min'] for part in report['parts'].values()) > 0
    expected = metrics(work_dir, 'val')
    assert report['parts']['backbone']['mean'] == pytest.approx(
        expected['backbone/GFLOPs']
    )
    assert report['backbone_ratio']['p95'] == pytest.approx(
        expected['backbone/FLOPs_ratio_p95']
    )


@pytest.mark.slow
def test_another_routing_by_the_command_line(trained, options, tmp_path):
    work_dir, _ = trained
    forked(
        'tools/test.py',
        CONFIG,
        work_dir / 'epoch_2.pth',
        '--work-dir',
        tmp_path,
        *options,
        'model.backbone.routing=uniform',
    )
    entries = metrics(tmp_path, 'test')
    assert 0.2 < entries['backbone/FLOPs_ratio'] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize('detector', ['retinanet', 'mask-rcnn'])
def test_coco_config_trains_on_coco_files(detector, test_data, tmp_path):
    """COCO's layout, with --cfg-options alone; a few images, small."""
    coco = test_data / 'data' / 'coco_tiny'
    keys = [
        'model.backbone.init_cfg=None',
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(256,160)',
    ]
    for split, count in (('train', 2), ('val', 2), ('test', 2)):
        keys += [
            f'{split}_dataloader.dataset.data_root={coco}/',
            f'{split}_dataloader.dataset.indices={count}',
            f'{split}_dataloader.num_workers=0',
            f'{split}_dataloader.persistent_workers=False',
        ]
    annotations = coco / 'annotations' / 'instances_val2017.json'
    for split in ('val', 'test'):
        keys += [
            f'{split}_dataloader.dataset.pipeline.1.scale=(256,160)',
            f'{split}_evaluator.0.ann_file={annotations}',
        ]
    # A step is unsure; without a detection there is no metric.
    part = 'rcnn.' if detector == 'mask-rcnn' else ''
    keys.append(f'model.test_cfg.{part}score_thr=0.001')
    log = forked(
        'tools/train.py',
        f'configs/dge/{detector}_dge-pvt-t_fpn_1x_coco.py',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *keys,
    )
    (line,) = re.findall(r'Epoch\(val\).*coco/bbox_mAP: .*', log)
    assert all(f'{key}: ' in line for key in METRICS)
    assert ('coco/segm_mAP: ' in line) == (detector == 'mask-rcnn')


@pytest.mark.slow
def test_ade20k_config_evaluates_all_classes(test_data, tmp_path):
    config = ROOT / 'configs/dge/fpn_dge-pvt-t_8xb4-40k_ade20k-512x512.py'
    cfg = Config.fromfile(config)
    model = MODELS.build(dict(cfg.model, _scope_='mmseg'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'random.pth')
    log = forked(
        'tools/test.py',
        config,
        tmp_path / 'random.pth',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        f'test_dataloader.dataset.data_root={test_data}/data/ade_sample',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        'test_dataloader.dataset.pipeline.1.scale=(512,128)',
    )
    # The last table of the metric has a line per class.
    rows = re.findall(r'^\|\s+([a-z][^|]*?)\s+\|', log, re.MULTILINE)
    assert rows[:2] == ['wall', 'building'] and len(rows) == 150
    entries = metrics(tmp_path, 'test')
    assert 0 <= entries['mIoU'] <= 100
    assert 0 < entries['backbone/FLOPs_ratio'] < 1


@pytest.mark.slow
def test_a_hook_without_a_dynamic_backbone_is_named(options, tmp_path):
    log = forked(
        'tools/train.py',
        CONFIG,
        '--work-dir',
        tmp_path,
        *options,
        'model.backbone._delete_=True',
        'model.backbone.type=ResNet',
        'model.backbone.depth=18',
        'model.backbone.out_indices=[1,2,3]',
        'model.neck.in_channels=[128,256,512]',
        expect=2,
    )
    assert 'error: CostHook needs a dynamic backbone in the model' in log
    assert 'RetinaNet with backbone ResNet' in log


@pytest.mark.slow
def test_demo(shapes, tool, tmp_path):
    with forks():
        out = tool(
            'tools/demo.py',
            '--work-dir',
            tmp_path,
            '--data-root',
            shapes,
            '--cfg-options',
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=1',
            'model.test_cfg.score_thr=0.001',
        )
    assert 'Epoch(train)' in out and 'Done in ' in out
    (picture,) = re.findall(r'as a picture: (\S+\.png)', out)
    assert Path(picture).stat().st_size > 10_000
    spent = {
        name: metrics(tmp_path / f'test_{name}', 'test')
        for name in ('own', 'finest', 'smaller', 'random')
    }
    ratios = {k: m['backbone/FLOPs_ratio'] for k, m in spent.items()}
    assert ratios['finest'] == 1
    dense, smaller = (
        spent[name]['backbone/GFLOPs'] for name in ('finest', 'smaller')
    )
    assert smaller < 0.6 * dense
    # Five images and few regions: the shares are met on average only.
    assert ratios['random'] == pytest.approx(ratios['own'], abs=0.1)
