"""Dynamic backbones and what they are built from."""

from .backbones import (
    DGEPVT,
    DGEDeiT,
    DGEPVTv2,
    DGEViT,
    DynamicViT,
    MergingViT,
    MixedPatchViT,
)
from .budget import share_for_budget
from .cost import ComputeMap, Cost
from .necks import SimpleFPN

__all__ = [
    'DGEPVT',
    'ComputeMap',
    'Cost',
    'DGEDeiT',
    'DGEPVTv2',
    'DGEViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
    'SimpleFPN',
    'share_for_budget',
]
