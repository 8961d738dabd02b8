"""Run a script of a host with mmdge's ops, and safe loading, in place.

On an mmcv without compiled ops most of mmdet can't be imported before mmdge,
and some of mmdet's own scripts do just that::

    python -m mmdge path/to/mmdet/tools/test.py CONFIG CHECKPOINT
"""

import os
import runpy
import sys

from .utils.safe_load import use_safe_loading

if __name__ == '__main__':
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        sys.exit('usage: python -m mmdge SCRIPT.py [arguments of the script]')
    use_safe_loading()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name='__main__')
