"""Dynamic backbones and what they are built from."""

from .backbones import DGEPVT, DGEDeiT, DGEViT, DynamicViT
from .budget import share_for_budget
from .cost import ComputeMap, Cost
from .necks import SimpleFPN

__all__ = [
    'DGEPVT',
    'ComputeMap',
    'Cost',
    'DGEDeiT',
    'DGEViT',
    'DynamicViT',
    'SimpleFPN',
    'share_for_budget',
]
