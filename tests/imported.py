"""What tests/forked.py imports once."""

import gc
import sys

from mmdge.utils import launch  # noqa: F401  isort: skip  installs ops

import mmdet.datasets  # noqa: F401
import mmdet.evaluation  # noqa: F401
import mmdet.models  # noqa: F401

from tests.unformatted import leave_unformatted

leave_unformatted()
gc.freeze()  # MMEngine collects for each data set: not what is shared
sys.stdout.flush()  # or every fork would say again what imports have said
