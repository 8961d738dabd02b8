"""Run tools in processes of their own, without the seconds of their imports.

They are forked from a process that has imported what all of them do, and
nothing else.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

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


def _run(argv, env, output):
    """What such a process does."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(ROOT)
    os.environ.update(env)
    if 'OMP_NUM_THREADS' in env:
        torch.set_num_threads(int(env['OMP_NUM_THREADS']))
    script = str(ROOT / argv[0])
    sys.argv = argv
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name='__main__')
