"""Run a script of a host with mmdge's ops in place.

On an mmcv without compiled ops most of mmdet can't be imported before mmdge,
and some of mmdet's own scripts do just that::

    python -m mmdge path/to/mmdet/tools/test.py CONFIG CHECKPOINT
"""

import os
import runpy
import sys

if __name__ == '__main__':
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        sys.exit('usage: python -m mmdge SCRIPT.py [arguments of the script]')
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name='__main__')
