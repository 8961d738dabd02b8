"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEDeiT
from .dynamic_vit import DynamicViT

__all__ = ['DGEPVT', 'DGEDeiT', 'DynamicViT']
