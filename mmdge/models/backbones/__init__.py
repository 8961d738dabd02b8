"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEDeiT, DGESwin, DGEViT
from .dynamic_vit import DynamicViT
from .mixing import MergingViT, MixedPatchViT

__all__ = [
    'DGEPVT',
    'DGEDeiT',
    'DGESwin',
    'DGEViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
]
