"""Dynamic backbones and what they are built from."""

from .backbones import DGEPVT
from .cost import Cost, GranularityMap

__all__ = ['DGEPVT', 'Cost', 'GranularityMap']
