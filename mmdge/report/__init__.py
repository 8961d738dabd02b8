"""One page about any number of runs: what tools/analysis_tools/report.py is.

Files are read by ``reading``, ``runs`` and ``results`` into the records of
``records``; ``tables``, ``figures`` and ``pictures`` make HTML of them, which
``page`` puts together.
"""

from .collect import collect
from .page import build_page
from .records import Collection, Evaluation, Run, Source, StudyRow, Sweep

__all__ = [
    'Collection',
    'Evaluation',
    'Run',
    'Source',
    'StudyRow',
    'Sweep',
    'build_page',
    'collect',
]
