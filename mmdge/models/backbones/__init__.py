"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEDeiT, DGEPVTv2, DGEViT
from .dynamic_vit import DynamicViT
from .mixing import MergingViT, MixedPatchViT

__all__ = [
    'DGEPVT',
    'DGEDeiT',
    'DGEPVTv2',
    'DGEViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
]
