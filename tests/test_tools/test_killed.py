"""A training that is killed at any moment ends like one that was not."""

import json
import re

import pytest

from mmdge.datasets import write_shapes
from mmdge.safe_training import read_checkpoint
from tests.forked import forked
from tests.tool_runs import ON_CPU, ROOT, data_options, equal

CONFIG = 'configs/shapes/retinanet_dge-pvt_fpn_exact-resume_shapes.py'
# What draws random numbers: flips, in processes of their own; DropPath; the
# paper's router. Three iterations an epoch.
OPTIONS = [
    'train_dataloader.batch_size=4',
    'model.backbone.routing._delete_=True',
    'model.backbone.routing.type=GumbelRouter',
    'model.backbone.routing.init_finest=0.34',
    'model.backbone.drop_path_rate=0.2',
    'default_hooks.cost.loss_weight=1.0',
    'default_hooks.logger.interval=1',
    'model.test_cfg.score_thr=0.0',
    # Small, since it starts anew so often.
    'model.neck.out_channels=16',
    'model.bbox_head.in_channels=16',
    'model.bbox_head.feat_channels=16',
    'model.bbox_head.stacked_convs=1',
]
LOOPS = {
    'epochs': (
        'epoch_9.pth',
        20,
        [
            'train_cfg.max_epochs=9',
            'train_cfg.val_interval=3',
            'default_hooks.checkpoint.max_keep_ckpts=1',
        ],
    ),
    'iterations': (
        'iter_16.pth',
        6,
        [
            'train_cfg._delete_=True',
            'train_cfg.type=IterBasedTrainLoop',
            'train_cfg.max_iters=16',
            'train_cfg.val_interval=8',
            'train_dataloader.num_workers=0',
            'train_dataloader.sampler.type=InfiniteSampler',
            'default_hooks.checkpoint.by_epoch=False',
            'default_hooks.checkpoint.interval=2',
            'default_hooks.checkpoint.max_keep_ckpts=2',
            'default_hooks.logger.log_metric_by_epoch=False',
            'log_processor.by_epoch=False',
            'param_scheduler.1.by_epoch=False',
            'param_scheduler.1.convert_to_iter_based=False',
            'param_scheduler.1.end=16',
            # More that is saved, and that is resumed.
            'default_hooks.ema.type=EMAHook',
            'default_hooks.checkpoint.save_best=backbone/GFLOPs',
            'default_hooks.checkpoint.rule=less',
        ],
    ),
}


def evaluations(work_dir):
    """Each evaluation's metrics, without times, by the step."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            if 'backbone/GFLOPs' not in line:
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # killed while writing it
                continue
            entry.pop('time'), entry.pop('data_time')
            found.setdefault(entry.pop('step'), []).append(entry)
    return found


@pytest.mark.slow
@pytest.mark.parametrize('loop', LOOPS)
def test_killed_again_and_again(loop, tmp_path):
    last, kills, more = LOOPS[loop]
    write_shapes(tmp_path / 'shapes', num_train=12, num_val=3, size=96)
    options = data_options('mmdet', tmp_path / 'shapes') + OPTIONS + more
    command = ['tools/train.py', CONFIG, '--resume', '--cfg-options', *options]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    forked(*command, '--work-dir', whole, **ON_CPU)
    said = forked(
        *(ROOT / 'tests/killed.py', kills),
        *(*command, '--work-dir', killed),
        timeout=1200,
        **ON_CPU,
    )
    found = re.findall(r'^killed: (\w+) in (\w+)$', said, re.MULTILINE)
    ways, places = zip(*found, strict=True)
    assert len(ways) == kills and len(set(ways)) == 6
    # Five ways are while saving; by the clock it may be anywhere.
    assert len(set(places)) >= (3 if loop == 'epochs' else 2)

    best = [path.name for path in whole.glob('best_*.pth')]
    assert [path.name for path in killed.glob('best_*.pth')] == best
    for name in best:
        one, other = (read_checkpoint(r / name) for r in (whole, killed))
        assert equal(one['state_dict'], other['state_dict'])
    expected = read_checkpoint(whole / last)
    found = read_checkpoint(killed / last)
    assert found.keys() == expected.keys()
    assert ('ema_state_dict' in found) == bool(best) == (loop == 'iterations')
    for key in ('epoch', 'iter', 'seed'):
        assert found['meta'][key] == expected['meta'][key]
    for key in expected.keys() - {'meta', 'message_hub'}:
        assert equal(found[key], expected[key]), key
    # Each evaluation, made once or again, found what the whole run found.
    once, again = evaluations(whole), evaluations(killed)
    assert once and once.keys() == again.keys()
    for step, (entry,) in once.items():
        assert entry['coco/bbox_mAP'] >= 0
        assert all(other == entry for other in again[step])
