"""Run a script of a host with mmdge's ops, and safe loading, in place.

On an mmcv without compiled ops most of mmdet can't be imported before mmdge,
and some of mmdet's own scripts do just that::

    python -m mmdge path/to/mmdet/tools/test.py CONFIG CHECKPOINT
"""

import os
import runpy
import sys

from .utils.launch import run_tool


def main() -> None:
    """Run the script that the command line names."""
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        sys.exit('usage: python -m mmdge SCRIPT.py [arguments of the script]')
    del sys.argv[0]
    # In front of the current folder, in which mmdge itself may lie.
    sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    sys.exit(run_tool(main))
