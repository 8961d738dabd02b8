"""Training at scale, as far as processes on one machine can show it."""

import os
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmdge.utils import UserError
from tests.forked import forked, two_forked
from tests.tool_runs import (
    ON_CPU,
    ROOT,
    SHAPES,
    data_options,
    functions_of,
    run,
)

CONFIG = SHAPES['mmpretrain']  # whose loss is a plain mean over the images
DOCS = (ROOT / 'docs' / 'training.md').read_text()
LAUNCH = dict(ON_CPU, PYTHON=sys.executable)
# Starts the command after its options --ntasks times, as one node would.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
  [[ $1 != --ntasks=* ]] || export SLURM_NTASKS=${1#*=}
  shift
done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  wait -n || { kill $(jobs -p); exit 1; }
done
"""

# One batch of eight images in each of five epochs, the same for any number of
# processes: in order, not flipped. The paper's router, with its budget loss
# but without noise, begins undecided, so that it routes differently soon.
# SGD, since AdamW makes whole steps of what is rounding.
SAME_BATCHES = [
    'train_dataloader.dataset.indices=8',
    'train_dataloader.sampler.shuffle=False',
    'train_dataloader.dataset.pipeline.1.prob=0.0',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_cfg.max_epochs=5',
    'val_cfg=None',
    'val_dataloader=None',
    'val_evaluator=None',
    'model.backbone.routing._delete_=True',
    'model.backbone.routing.type=GumbelRouter',
    'model.backbone.routing.noise=False',
    'model.backbone.routing.init_finest=0.34',
    'default_hooks.cost.loss_weight=1.0',
    'optim_wrapper.optimizer._delete_=True',
    'optim_wrapper.optimizer.type=SGD',
    'optim_wrapper.optimizer.lr=0.1',
    'optim_wrapper.optimizer.momentum=0.9',
    'optim_wrapper.clip_grad=None',
    'param_scheduler=None',
    'default_hooks.checkpoint.max_keep_ckpts=-1',
]


@pytest.fixture(scope='module')
def options(shapes):
    return ['--cfg-options', *data_options('mmpretrain', shapes)]


@pytest.fixture(scope='module')
def batches(options):
    return [*options, *SAME_BATCHES]


@pytest.fixture(scope='module')
def alone(batches, tmp_path_factory):
    """The checkpoint that one process comes to."""
    work_dir = tmp_path_factory.mktemp('alone')
    command = ('tools/train.py', CONFIG, '--work-dir', work_dir, *batches)
    forked(*command, 'train_dataloader.batch_size=8', **ON_CPU)
    first, last = (load(work_dir / f'epoch_{n}.pth') for n in (1, 5))
    assert difference(first, last) > 1e-2
    assert np.ptp(history(last, 'flops_ratio')) > 0.1
    return last


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def difference(found, expected):
    """The largest one between the weights of two checkpoints."""
    found, expected = found['state_dict'], expected['state_dict']
    assert found.keys() == expected.keys()
    return max((found[k] - expected[k]).abs().max().item() for k in found)


def history(checkpoint, name):
    """The values of each step of a training."""
    values, _ = checkpoint['message_hub']['log_scalars'][f'train/{name}'].data
    return values


def assert_same_training(work_dir, expected):
    found = load(work_dir / 'epoch_5.pth')
    assert difference(found, expected) < 1e-5
    for name in ('flops_ratio', 'loss_budget'):  # of all processes' images
        np.testing.assert_allclose(
            history(found, name), history(expected, name), rtol=1e-6
        )


@pytest.mark.slow
def test_two_processes_equal_one(alone, batches, tmp_path):
    """At a learning rate that is the same once it is scaled by the batch."""
    two_forked(
        *('tools/train.py', CONFIG, '--auto-scale-lr'),
        *('--work-dir', tmp_path, *batches),
        'auto_scale_lr.base_batch_size=16',
        'optim_wrapper.optimizer.lr=0.2',
        'train_dataloader.batch_size=4',
        **ON_CPU,
    )
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_of_slurm_equal_one(alone, batches, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text(SRUN)
    srun.chmod(0o755)
    run(
        *('bash', 'tools/slurm_train.sh', 'part', 'job', CONFIG, tmp_path),
        *(*batches, 'train_dataloader.batch_size=4'),
        **LAUNCH,
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        GPUS='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=free_port(),
    )
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_two_nodes_equal_one_process(alone, batches, tmp_path):
    port = free_port()
    command = ['bash', 'tools/dist_train.sh', CONFIG, 1]
    command += ['--work-dir', tmp_path, *batches]
    command += ['train_dataloader.batch_size=4']
    with ThreadPoolExecutor() as pool:
        nodes = [
            pool.submit(
                run, *command, **LAUNCH, NNODES='2', NODE_RANK=rank, PORT=port
            )
            for rank in '01'
        ]
        for node in nodes:
            node.result()
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_sharded_processes_equal_one(alone, batches, tmp_path):
    """FSDP by the lines of the documentation, on the CPU by a few more."""
    (lines,) = re.findall(r'```python\n(runner_type.*?)```', DOCS, re.DOTALL)
    config = tmp_path / 'sharded.py'
    on_cpu = (  # where the offload of weights that are there loses them
        "wrapper = strategy['model_wrapper']\n"
        "wrapper['device_id'] = 'cpu'\n"
        "wrapper['auto_wrap_policy']['min_num_params'] = 50_000\n"
        "strategy['state_dict_cfg'] = dict(\n"
        "    state_dict_type='FULL_STATE_DICT',\n"
        "    state_dict_config=dict(type='FullStateDictConfig'),\n"
        "    optim_state_dict_config=dict(type='FullOptimStateDictConfig'),\n"
        ')\n'
    )
    config.write_text(f'_base_ = {str(ROOT / CONFIG)!r}\n{lines}{on_cpu}')
    command = ['tools/train.py', config, '--work-dir', tmp_path, *batches]
    two_forked(*command, 'train_dataloader.batch_size=4', **ON_CPU)
    assert_same_training(tmp_path, alone)


def test_a_sharded_training_is_not_resumed():
    cfg = Config(dict(work_dir='none', strategy=dict(type='FSDPStrategy')))
    with pytest.raises(UserError, match='load_from=a.pth'):
        functions_of('tools/train.py').resume_from(cfg, 'a.pth')


@pytest.mark.slow
def test_accumulated_halves_equal_a_batch(batches, tmp_path):
    """Without the budget loss: the square of a mean is no mean of squares."""
    states = []
    for size, count in ((8, 1), (4, 2)):
        work_dir = tmp_path / str(size)
        forked(
            *('tools/train.py', CONFIG, '--work-dir', work_dir, *batches),
            'default_hooks.cost.loss_weight=0.0',
            f'train_dataloader.batch_size={size}',
            f'optim_wrapper.accumulative_counts={count}',
            **ON_CPU,
        )
        states.append(load(work_dir / 'epoch_5.pth'))
    assert difference(*states) < 1e-5
