"""Methods: candidates, score, amount, and what happens to the rows."""

from .base import Method
from .granularity import Granularity
from .pruning import Pruning

__all__ = ['Granularity', 'Method', 'Pruning']
