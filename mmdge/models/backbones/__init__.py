"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEDeiT, DGEViT
from .dynamic_vit import DynamicLVViT, DynamicViT
from .mixing import MergingViT, MixedPatchViT

__all__ = [
    'DGEPVT',
    'DGEDeiT',
    'DGEViT',
    'DynamicLVViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
]
