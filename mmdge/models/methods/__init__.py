"""Methods: candidates, score, amount, and what happens to the rows."""

from .base import Method
from .fast_path import FastPath
from .granularity import Granularity
from .mixing import Merging, MixedPatches, Mixing
from .pruning import Pruning
from .token_routing import TokenRouting

__all__ = [
    'FastPath',
    'Granularity',
    'Merging',
    'Method',
    'MixedPatches',
    'Mixing',
    'Pruning',
    'TokenRouting',
]
