"""Run tools in processes of their own, without the seconds of their imports.

They are forked from a process that has imported what all of them do, and
nothing else.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import torch

from tests.tool_runs import ROOT

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['tests.imported'])


def forked(script, *arguments, expect=0, timeout=300, **env):
    """Run one of the tools; return what it printed.

    Args:
        script (str | Path): Of the repository, or a whole path.
        *arguments: Its command line.
        expect (int): The exit code.
        timeout (float): In seconds.
        **env (str): Variables of the process.
    """
    argv = [str(part) for part in (script, *arguments)]
    with tempfile.TemporaryFile('w+') as file:
        name = f'/proc/{os.getpid()}/fd/{file.fileno()}'
        process = SERVER.Process(target=_run, args=(argv, env, name))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        said = Path(name).read_text()
    assert process.exitcode == expect, said[-3000:]
    return said


def two_forked(*command, **env):
    """Run one of the tools as two processes, as torchrun starts them."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = str(server.getsockname()[1])
    env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2')

    def start(rank):
        ranks = dict(RANK=rank, LOCAL_RANK=rank)
        forked(*command, '--launcher', 'pytorch', **ranks, **env)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, '01'))


class Fork:
    """What ``Popen`` would give, of a script that has ended."""

    returncode = 0

    def __init__(self, command, stdout, env, **_):
        self.args = command
        # What stands before the script is for the interpreter.
        first = command.index('ignore') + 1
        said = forked(*command[first:], **env)
        if stdout == subprocess.PIPE:
            self.stdout = said.splitlines(True)
        else:
            stdout.write(said)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def communicate(self, *_, **__):
        return None, None

    def poll(self):
        return self.returncode


def forks(popen=subprocess.Popen):
    """A context in which the tools that a tool starts are forked."""

    def start(command, *args, **kwargs):
        kind = Fork if command[0] == sys.executable else popen
        return kind(command, *args, **kwargs)

    return mock.patch('subprocess.Popen', start)


def _run(argv, env, output):
    """What such a process does."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(ROOT)
    os.environ.update(env)
    sys.path[:0] = env.get('PYTHONPATH', '').split(':')
    if 'OMP_NUM_THREADS' in env:
        torch.set_num_threads(int(env['OMP_NUM_THREADS']))
    script = str(ROOT / argv[0])
    sys.argv = argv
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name='__main__')
