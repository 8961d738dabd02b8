"""Train a config of mmdet, mmseg or mmpretrain with mmdge's backbones.

Example::

    python tools/train.py configs/shapes/retinanet_dge-pvt_fpn_shapes.py
"""

import argparse
import os
import sys
from pathlib import Path

# Before PyTorch reads it: threads that wait shall not keep the cores that
# another job needs (docs/training.md).
os.environ.setdefault('GOMP_SPINCOUNT', '1000')

import torch
from mmengine.config import Config

import mmdge  # noqa: F401  registers the backbones before a config asks
from mmdge.safe_training import find_latest_checkpoint
from mmdge.utils import UserError, checks, launch


def parse_args() -> argparse.Namespace:
    parser = launch.build_parser(__doc__.splitlines()[0])
    parser.add_argument(
        '--amp',
        nargs='?',
        const='float16',
        choices=['float16', 'bfloat16'],
        help='train in mixed precision, of this type (default: float16)',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size, from the config's "
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a name, from the latest '
        'whole one in the work dir, if there is one',
    )
    return parser.parse_args()


def use_amp(cfg: Config, dtype: str) -> None:
    wrapper = cfg.optim_wrapper
    kind = checks.type_name(wrapper, 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp does not go with optim_wrapper.type={kind}; allowed: '
            'OptimWrapper, AmpOptimWrapper'
        )
    wrapper.type, wrapper.dtype = 'AmpOptimWrapper', dtype
    if dtype == 'bfloat16':  # has the range of float32: nothing to scale
        wrapper.loss_scale = dict(enabled=False)
    elif wrapper.get('loss_scale') is None:
        wrapper.loss_scale = 'dynamic'


def resume_from(cfg: Config, checkpoint: str) -> None:
    if checkpoint == 'auto':
        checkpoint = find_latest_checkpoint(cfg)
    # A first run has nothing to go on from, and keeps its load_from.
    cfg.resume = checkpoint is not None
    if not cfg.resume:
        print(f'nothing to resume in {cfg.work_dir}, starting afresh')
    elif checks.type_name(cfg.get('strategy') or {}) == 'FSDPStrategy':
        raise UserError(
            'MMEngine cannot resume with FSDPStrategy; start from the weights '
            f'with --cfg-options load_from={checkpoint}'
        )
    else:
        cfg.load_from = checkpoint


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(
        args.config, args.cfg_options, args.work_dir, args.launcher
    )
    resume = args.resume
    if not resume and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    restarts = os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0') != '0'
    if restarts and resume != 'auto':
        raise UserError(
            'MAX_RESTARTS needs --resume without a name, or each time the '
            'training would begin again'
        )
    if args.amp:
        use_amp(cfg, args.amp)
    if args.auto_scale_lr:
        cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr') or {}, enable=True)
    if resume:
        resume_from(cfg, resume)
    elif Path(cfg.work_dir, 'last_checkpoint').is_file():
        print(
            f'{cfg.work_dir} has checkpoints of an earlier training, which '
            'this one will overwrite; --resume goes on from them'
        )
    checks.check_checkpoints(cfg)
    checks.check_datasets(cfg, ('train', 'val'))
    launch.do_without_amp(cfg)
    launch.init_cpu_distributed(cfg)
    runner = launch.build_runner(cfg)
    # FlexibleRunner has none yet.
    if cfg.get('resume') and isinstance(runner.model, torch.nn.Module):
        checks.check_same_model(cfg.load_from, runner.model)
    if cfg.get('train_dataloader') is None:
        raise UserError(f'{args.config} has no train_dataloader to train with')
    try:
        runner.train_loop  # noqa: B018  is built
    except ValueError:
        checks.check_filtered_classes(cfg.train_dataloader)
        raise
    checks.check_classes(runner.train_dataloader.dataset)
    if runner.val_loop is not None:
        checks.check_classes(runner.val_dataloader.dataset)
    runner.train()


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
