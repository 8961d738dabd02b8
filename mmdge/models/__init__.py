"""Dynamic backbones and what they are built from."""

from .backbones import (
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
    TokenRoutingPVT,
)
from .budget import share_for_budget
from .cost import ComputeMap, Cost
from .necks import SimpleFPN

__all__ = [
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
    'TokenRoutingPVT',
    'share_for_budget',
]
