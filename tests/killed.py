"""Train, be killed again and again, and go on each time.

A process of its own, which imports everything once and forks each attempt,
so that being killed takes seconds each time::

    python tests/killed.py KILLS train.py CONFIG --work-dir ... --resume
"""

import mmap
import os
import random
import signal
import stat
import sys
import time
from contextlib import suppress

from mmengine.hooks import checkpoint_hook
from mmengine.runner import Runner

from mmdge.utils import launch  # installs the ops that mmdet imports
from tests.tool_runs import functions_of

# Here, once, so that each start is fast.
import mmdet.models  # noqa: E402, F401  isort: skip


# How many hook points the training has reached, and which one last; shared
# with its process.
PLACE = mmap.mmap(-1, 60)
call_hook = Runner.call_hook


def note_place(self, name, **kwargs):
    reached, _ = place()
    PLACE[:] = f'{reached + 1} {name}'.encode().ljust(len(PLACE))
    call_hook(self, name, **kwargs)


Runner.call_hook = note_place


def place():
    words = PLACE[:].decode().strip('\0').split()
    return (int(words[0]), words[1]) if words else (0, 'start')


def is_file(descriptor):
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def ended(child):
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child, options) is not None


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class At:
    """Where a process kills itself: at the `count`-th checkpoint, ..."""

    def __init__(self, count):
        self.count = count

    def due(self):
        self.count -= 1
        return self.count == 0

    def half_written(self):
        fsync = os.fsync

        def cut(descriptor):
            if is_file(descriptor) and self.due():
                os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
                kill()
            fsync(descriptor)

        os.fsync = cut

    def written_but_not_moved(self):
        fsync = os.fsync

        def late(descriptor):
            fsync(descriptor)
            if is_file(descriptor) and self.due():
                kill()

        os.fsync = late

    def moved_but_not_named(self):
        replace = os.replace

        def late(*paths):
            replace(*paths)
            if self.due():
                kill()

        os.replace = late

    def half_named(self):
        def half(path, mode):
            file = open(path, mode)  # noqa: SIM115  its caller closes it
            if self.due():
                kill()
            return file

        checkpoint_hook.open = half

    def half_cleared(self):
        remove = os.remove

        def early(path):
            if self.due():
                kill()
            remove(path)

        os.remove = early

    def by_the_clock(self):
        """By who started it, soon after one of its hook points."""


def attempt(prepare=None):
    """Start the training in a child process; return its number."""
    PLACE[:] = bytes(len(PLACE))
    child = os.fork()
    if child == 0:
        os.setpgrp()
        if prepare:
            prepare()
        code = launch.run_tool(functions_of('tools/train.py').main)
        sys.stdout.flush()
        os._exit(code)
    return child


def end(child):
    """Wait for a child and return its status, and leave none of its own.

    A process that loads data notices that its parent has died, unless that
    was while it started: then PyTorch's lives on.
    """
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status


def main(kills):
    draw = random.Random(0)
    # Each way to die while writing once; then by the clock, which may let it
    # come to its end before: what is left then is to evaluate.
    ways = [
        'half_written',
        'written_but_not_moved',
        'moved_but_not_named',
        'half_named',
        'half_cleared',
    ]
    draw.shuffle(ways)
    done = 0
    while done < kills:
        way = ways[done] if done < len(ways) else 'by_the_clock'
        child = attempt(getattr(At(draw.choice((1, 2))), way))
        if way == 'by_the_clock':
            points = draw.randrange(25)
            while place()[0] < points and not ended(child):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        status = end(child)
        if os.WIFSIGNALED(status):
            done += 1
            # The killed one may have been in the middle of a line.
            print(f'\nkilled: {way} in {place()[1]}', flush=True)
        elif os.WEXITSTATUS(status) or way != 'by_the_clock':
            sys.exit(f'{way}: ended by itself, {status}')
    sys.exit(os.waitstatus_to_exitcode(end(attempt())))


if __name__ == '__main__':
    kills = int(sys.argv[1])
    del sys.argv[:2]
    main(kills)
