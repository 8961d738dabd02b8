"""Trainings that a kill can't break: whole files, exact resume, safe reading.

Nothing here knows a token: it builds on MMEngine alone.
"""

from .atomic_backend import AtomicBackend
from .checkpoint_hook import SafeCheckpointHook
from .latest import find_latest_checkpoint
from .random_states import get_random_states, seed_worker, set_random_states
from .reading import open_checkpoint, read_checkpoint, use_safe_loading

__all__ = [
    'AtomicBackend',
    'SafeCheckpointHook',
    'find_latest_checkpoint',
    'get_random_states',
    'open_checkpoint',
    'read_checkpoint',
    'seed_worker',
    'set_random_states',
    'use_safe_loading',
]
