import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
STUB = """#!/bin/sh
echo "threads=$OMP_NUM_THREADS"
echo "spin=$GOMP_SPINCOUNT" >&2
echo "port=$MASTER_PORT" >&2
printf "%s\\n" "$@"
"""


@pytest.fixture
def stub(tmp_path):
    """A program that prints its arguments, one to a line."""
    path = tmp_path / 'srun'
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def run(script, *args, **env):
    clean = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    return subprocess.run(
        ['bash', TOOLS / script, *args],
        env={**clean, **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    'path', sorted(TOOLS.glob('*.sh')), ids=lambda p: p.name
)
def test_syntax(path):
    subprocess.run(['bash', '-n', path], check=True)


def test_dist_train_passes_the_environment_on(stub):
    out = run(
        'dist_train.sh',
        'my config.py',
        '4',
        '--cfg-options',
        'a="[1, 2]"',
        PYTHON=str(stub),
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PORT='1234',
        OMP_NUM_THREADS='3',
    ).stdout.splitlines()
    assert out == [
        'threads=3',
        '-m',
        'torch.distributed.run',
        '--nnodes=2',
        '--node_rank=1',
        '--master_addr=10.0.0.1',
        '--master_port=1234',
        '--nproc_per_node=4',
        str(TOOLS / 'train.py'),
        'my config.py',
        '--cfg-options',
        'a="[1, 2]"',
        '--launcher',
        'pytorch',
    ]


def test_restarts_meet_anew(stub):
    out = run(
        'dist_train.sh', 'c.py', '4', '--resume',
        PYTHON=str(stub), NNODES='2', MASTER_ADDR='10.0.0.1', PORT='1234',
        MAX_RESTARTS='5',
    ).stdout.splitlines()  # fmt: skip
    assert '--max_restarts=5' in out and '--rdzv_backend=c10d' in out
    assert '--rdzv_endpoint=10.0.0.1:1234' in out
    assert not any(line.startswith('--master') for line in out)


def test_dist_test_takes_the_checkpoint_second(stub):
    out = run(
        'dist_test.sh', 'c.py', 'w.pth', '2', '--out', 'o.pkl',
        PYTHON=str(stub), PORT='1', NNODES='1',
    ).stdout.splitlines()  # fmt: skip
    assert out[-7:] == [
        str(TOOLS / 'test.py'),
        *['c.py', 'w.pth', '--out', 'o.pkl', '--launcher', 'pytorch'],
    ]


def test_single_node_takes_a_free_port():
    ports = set()
    for _ in range(2):
        # `python` is real for the port, and stopped before torch is loaded.
        trace = subprocess.run(
            ['bash', '-c', f'exec() {{ echo "$@"; }}; '
             f'source "{TOOLS}/dist_common.sh"; launch 1 train.py c.py'],
            env={**os.environ, 'PYTHON': 'python3', 'NNODES': '1'},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        ports.add(trace.stdout.split('--master_port=')[1].split()[0])
    assert len(ports) == 2
    assert all(port.isdigit() for port in ports)


@pytest.mark.parametrize('gpus', ['0', 'two', ''])
def test_a_wrong_number_of_gpus_is_refused(gpus):
    result = run('dist_train.sh', 'c.py', gpus)
    assert result.returncode == 2
    assert 'GPUS must be a positive number' in result.stderr


@pytest.mark.parametrize('restarts', ['3x', '-1', 'yes'])
def test_a_wrong_number_of_restarts_is_refused(restarts):
    result = run('dist_train.sh', 'c.py', '2', MAX_RESTARTS=restarts)
    assert result.returncode == 2
    assert 'MAX_RESTARTS must be a number' in result.stderr


@pytest.mark.parametrize(
    ('script', 'given', 'passed'),
    [
        ('slurm_train.sh', 'w', ['c.py', '--work-dir', 'w']),
        ('slurm_test.sh', 'w.pth', ['c.py', 'w.pth']),
    ],
)
@pytest.mark.parametrize('port', [{}, {'PORT': '1234'}])
def test_slurm(stub, script, given, passed, port):
    result = run(
        script, 'part', 'job', 'c.py', given, '--amp',
        PATH=f'{stub.parent}:{os.environ["PATH"]}', PYTHON='py',
        GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='6',
        SRUN_ARGS='--mem 8G --quiet', **port,
    )  # fmt: skip
    said = int(result.stderr.split('port=')[1])
    # Of as many that two jobs will hardly meet, and none of the system's.
    assert said == int(port['PORT']) if port else 20000 <= said < 40000
    out = result.stdout.splitlines()
    tool = script.removeprefix('slurm_').replace('.sh', '.py')
    assert out[1:] == [
        *['--partition=part', '--job-name=job', '--gres=gpu:4'],
        *['--ntasks=16', '--ntasks-per-node=4', '--cpus-per-task=6'],
        *['--kill-on-bad-exit=1', '--mem', '8G', '--quiet'],
        *['py', '-u', str(TOOLS / tool), *passed, '--amp'],
        *['--launcher', 'slurm'],
    ]


AT_IMPORT = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, *args):
        if name == 'torch':
            sys.exit('spin=' + os.environ['GOMP_SPINCOUNT'])

sys.meta_path.insert(0, Finder())
runpy.run_path(sys.argv[1], run_name='__main__')
"""


@pytest.mark.parametrize('own', [None, '7'])
def test_waiting_threads_leave_the_cores_to_others(own, stub):
    """Unless the user wants it otherwise; as PyTorch is loaded."""
    env = {} if own is None else {'GOMP_SPINCOUNT': own}
    expected = f'spin={own or 1000}'
    clean = {k: v for k, v in os.environ.items() if k != 'GOMP_SPINCOUNT'}
    for tool in ('train.py', 'test.py'):
        done = subprocess.run(
            [sys.executable, '-c', AT_IMPORT, TOOLS / tool],
            env={**clean, **env},
            capture_output=True,
            text=True,
        )
        assert done.stderr.strip() == expected
    made = subprocess.run(
        ['make', '-pn', 'help'],
        cwd=TOOLS.parent,
        env={**clean, **env},
        capture_output=True,
        text=True,
    )
    assert re.search(f'GOMP_SPINCOUNT .?= {own or 1000}\n', made.stdout)
    done = run('dist_train.sh', 'config.py', '2', PYTHON=str(stub), **env)
    if shutil.which('nvidia-smi') is None:
        assert expected in done.stderr
