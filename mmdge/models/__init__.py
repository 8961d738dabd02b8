"""Dynamic backbones and what they are built from."""

from .backbones import DGEPVT
from .budget import share_for_budget
from .cost import Cost, GranularityMap

__all__ = ['DGEPVT', 'Cost', 'GranularityMap', 'share_for_budget']
