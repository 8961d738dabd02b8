"""Methods: candidates, score, amount, and what happens to the rows."""

from .base import Method
from .coarse_to_fine import CoarseToFine, DenseLabels
from .fast_path import FastPath
from .granularity import Granularity
from .mixing import Merging, MixedPatches, Mixing
from .pruning import Pruning
from .token_routing import TokenRouting

__all__ = [
    'CoarseToFine',
    'DenseLabels',
    'FastPath',
    'Granularity',
    'Merging',
    'Method',
    'MixedPatches',
    'Mixing',
    'Pruning',
    'TokenRouting',
]
