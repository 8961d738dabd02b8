"""The registered backbones, each an architecture, a method and defaults."""

from .dge import (
    DGEDPVT,
    DGEPVT,
    DGEConvNeXt,
    DGEDeiT,
    DGEPVTv2,
    DGESwin,
    DGEViT,
)
from .dynamic_vit import DynamicLVViT, DynamicViT
from .fast_path import DynamicConvNeXt, DynamicSwin
from .mixing import CFLVViT, CFViT, MergingViT, MixedPatchViT
from .token_routing import TokenRoutingPVT

__all__ = [
    'DGEDPVT',
    'CFLVViT',
    'CFViT',
    'DGEPVT',
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
    'TokenRoutingPVT',
]
