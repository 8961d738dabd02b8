"""What tools/analysis_tools/benchmark.py times, and how it shows it."""

from .arms import (
    CHECKPOINT,
    INFERENCE,
    SAMPLES,
    TRAINING,
    Arm,
    Subject,
    build_arms,
)
from .report import as_table, draw
from .setting import Setting, host_difference

__all__ = [
    'CHECKPOINT',
    'INFERENCE',
    'SAMPLES',
    'TRAINING',
    'Arm',
    'Setting',
    'Subject',
    'as_table',
    'build_arms',
    'draw',
    'host_difference',
]
