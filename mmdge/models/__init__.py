"""Dynamic backbones and what they are built from."""

from .backbones import (
    DGEDPVT,
    DGEPVT,
    DGEConvNeXt,
    DGEDeiT,
    DGEPVTv2,
    DGESwin,
    DGEViT,
    DynamicConvNeXt,
    DynamicLVViT,
    DynamicSwin,
    DynamicViT,
    MergingViT,
    MixedPatchViT,
)
from .budget import share_for_budget
from .cost import ComputeMap, Cost
from .necks import SimpleFPN

__all__ = [
    'DGEDPVT',
    'DGEPVT',
    'ComputeMap',
    'Cost',
    'DGEConvNeXt',
    'DGEDeiT',
    'DGESwin',
    'DGEPVTv2',
    'DGEViT',
    'DynamicConvNeXt',
    'DynamicSwin',
    'DynamicLVViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
    'SimpleFPN',
    'share_for_budget',
]
