"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEDeiT, DGEViT
from .dynamic_vit import DynamicViT

__all__ = ['DGEPVT', 'DGEDeiT', 'DGEViT', 'DynamicViT']
