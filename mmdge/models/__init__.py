"""Dynamic backbones and what they are built from."""

from .backbones import (
    DGEDPVT,
    DGEPVT,
    CFLVViT,
    CFViT,
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
from .heads import CoarseToFineHead
from .necks import SimpleFPN

__all__ = [
    'DGEDPVT',
    'CFLVViT',
    'CFViT',
    'DGEPVT',
    'CoarseToFineHead',
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
