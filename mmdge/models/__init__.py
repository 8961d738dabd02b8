"""Dynamic backbones and what they are built from."""

from .backbones import DGEPVT, DGEDeiT
from .budget import share_for_budget
from .cost import Cost, GranularityMap
from .necks import SimpleFPN

__all__ = [
    'DGEPVT',
    'Cost',
    'DGEDeiT',
    'GranularityMap',
    'SimpleFPN',
    'share_for_budget',
]
