"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEConvNeXt, DGEDeiT, DGEViT
from .dynamic_vit import DynamicViT
from .mixing import MergingViT, MixedPatchViT

__all__ = [
    'DGEPVT',
    'DGEConvNeXt',
    'DGEDeiT',
    'DGEViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
]
