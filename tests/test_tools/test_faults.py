"""Processes that die and disks that fill end with a message, and go on."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from mmdge.safe_training import read_checkpoint
from tests.forked import forked, two_forked
from tests.tool_runs import (
    ON_CPU,
    ROOT,
    data_options,
    equal,
    error_in,
    run,
)

CONFIG = 'configs/shapes/retinanet_dge-pvt_fpn_exact-resume_shapes.py'
OPTIONS = [
    'train_cfg.max_epochs=3',
    'train_cfg.val_interval=3',
    'train_dataloader.batch_size=2',
    'model.test_cfg.score_thr=0.0',
    'default_hooks.checkpoint.max_keep_ckpts=-1',
]
LAUNCH = dict(ON_CPU, PYTHON=sys.executable)
# A config with a fault: `faults.py` lies beside it.
FAULTY = f"""
_base_ = {str(ROOT / CONFIG)!r}
custom_imports = dict(imports=['mmdge', 'faults'])
"""
FAULTS = """
import os, signal
from pathlib import Path
from mmcv.transforms import BaseTransform
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

@HOOKS.register_module()
class Die(Hook):
    \"\"\"Kill one of the processes in the third epoch, once.\"\"\"
    def __init__(self, mark):
        self.mark = Path(mark)
    def after_train_iter(self, runner, batch_idx, **kwargs):
        if get_rank() == 1 and runner.epoch == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

@TRANSFORMS.register_module()
class DieLoading(BaseTransform):
    def __init__(self, **kwargs):
        pass
    def transform(self, results):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def faulty(tmp_path):
    (tmp_path / 'faults.py').write_text(FAULTS)
    (tmp_path / 'faulty.py').write_text(FAULTY)
    return tmp_path / 'faulty.py'


@pytest.fixture
def options(shapes):
    return ['--cfg-options', *data_options('mmdet', shapes), *OPTIONS]


def two(config, work_dir, *more, **kwargs):
    return run(
        *('bash', 'tools/dist_train.sh', config, 2, '--work-dir', work_dir),
        *more,
        PYTHONPATH=f'{ROOT}:{config.parent}',
        **LAUNCH,
        **kwargs,
    )


@pytest.mark.slow
class TestAProcessOfTwoIsKilled:
    @pytest.fixture
    def die(self, tmp_path, options):
        mark = tmp_path / 'mark'
        hook = ['default_hooks.die.type=Die', f'default_hooks.die.mark={mark}']
        return [*options, *hook]

    def test_the_other_ends_and_says_so(self, faulty, die, tmp_path):
        work_dir = tmp_path / 'run'
        said = two(faulty, work_dir, *die, expect=1)
        seconds = time.time() - (tmp_path / 'mark').stat().st_mtime
        assert seconds < 60
        assert re.search(r'Signal 9 \(SIGKILL\) received by PID \d+', said)
        assert not (work_dir / 'epoch_3.pth').exists()
        read_checkpoint(work_dir / 'epoch_2.pth')

    def test_started_again_it_ends_as_if_nothing_had_been(
        self, faulty, die, options, tmp_path
    ):
        whole, killed = tmp_path / 'whole', tmp_path / 'killed'
        two_forked(
            *('tools/train.py', faulty, '--work-dir', whole, *options),
            PYTHONPATH=str(tmp_path),
            **ON_CPU,
        )
        said = two(faulty, killed, '--resume', *die, MAX_RESTARTS='1')
        assert (tmp_path / 'mark').exists()
        assert 'resumed epoch: 2' in said
        one, other = (
            read_checkpoint(folder / 'epoch_3.pth')
            for folder in (whole, killed)
        )
        assert len(other['random_states']) == 2
        for key in ('state_dict', 'optimizer', 'param_schedulers'):
            assert equal(one[key], other[key]), key


@pytest.mark.parametrize('resume', [[], ['--resume', 'epoch_2.pth']])
def test_a_restart_that_would_begin_again_is_refused(
    resume, options, tmp_path, tool, monkeypatch
):
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '1')
    command = ('tools/train.py', CONFIG, '--work-dir', tmp_path / 'run')
    said = tool(*command, *resume, *options, expect=2)
    assert 'error: MAX_RESTARTS needs --resume' in said
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_killed_loader_ends_the_run(faulty, options, tmp_path):
    pipeline = 'train_dataloader.dataset.pipeline.1'
    said = forked(
        *('tools/train.py', faulty, '--work-dir', tmp_path / 'run', *options),
        f'{pipeline}.type=DieLoading',
        PYTHONPATH=f'{ROOT}:{tmp_path}',
        expect=1,
        **ON_CPU,
    )
    last = said.strip().splitlines()[-1]
    died = r'RuntimeError: DataLoader worker \(pid.* (killed|exited)'
    assert re.match(died, last)


# Shells in which a disk of $1 KiB under the folder $2 is full soon, and that
# run the rest of their arguments.
FULL = {
    # No file may be larger than half of it, which anybody can have.
    'limit': (
        ['bash', '-c', 'ulimit -f $(($1 / 2)); shift 2; exec "$@"', '-'],
        'File too large',
    ),
    # A disk of its own, which ends with the shell: what is on it is copied.
    'disk': (
        ['unshare', '-rm', 'bash', '-c']
        + [
            'size=$1 dir=$2; shift 2; cp -a $dir $dir.disk; '
            'mount -t tmpfs -o size=${size}k none $dir; '
            'cp -a $dir.disk/. $dir; "$@"; code=$?; '
            'rm -r $dir.disk; cp -a $dir $dir.disk; exit $code',
            '-',
        ],
        'No space left on device',
    ),
}


def may_mount():
    command = ['unshare', '-rm', 'mount', '-t', 'tmpfs', 'none', '/tmp']
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_full_disk_ends_the_run(options, tmp_path):
    kind = 'disk' if may_mount() else 'limit'
    work_dir = tmp_path / 'run'
    train = ['tools/train.py', CONFIG, '--work-dir', work_dir, '--resume']
    train += [*options, 'train_cfg.val_interval=9']
    forked(*train, 'train_cfg.max_epochs=1', **ON_CPU)
    first = work_dir / 'epoch_1.pth'
    before = first.read_bytes()
    shell, message = FULL[kind]
    said = run(
        # Room for the first checkpoint, logs, and half of the second.
        *(*shell, len(before) * 3 // 2048 + 64, work_dir),
        *(sys.executable, *train, 'train_cfg.max_epochs=2'),
        expect=2,
        **ON_CPU,
    )
    if kind == 'disk':
        shutil.rmtree(work_dir)
        work_dir.with_name('run.disk').rename(work_dir)
    error = error_in(said)
    assert re.match(rf'cannot write \S+/epoch_2\.pth: {message}', error)
    assert first.read_bytes() == before
    assert sorted(p.name for p in work_dir.glob('*.pth*')) == [first.name]
    said = forked(*train, 'train_cfg.max_epochs=2', **ON_CPU)
    assert 'resumed epoch: 1' in said
    assert (work_dir / 'epoch_2.pth').exists()


def test_a_work_dir_that_cannot_be(options, tmp_path, tool):
    (tmp_path / 'file').touch()
    work_dir = tmp_path / 'file' / 'run'
    command = ('tools/train.py', CONFIG, '--work-dir', work_dir, *options)
    with pytest.raises(NotADirectoryError, match=f"directory: '{work_dir}"):
        tool(*command)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_work_dir_that_is_read_only(options, tmp_path, tool):
    tmp_path.chmod(0o555)
    command = ('tools/train.py', CONFIG, '--work-dir', tmp_path, *options)
    with pytest.raises(PermissionError, match=f"denied: '{tmp_path}"):
        tool(*command)
    tmp_path.chmod(0o755)
