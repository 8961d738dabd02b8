"""The registered backbones, each an architecture, a method and defaults."""

from .dge import DGEPVT, DGEDeiT

__all__ = ['DGEPVT', 'DGEDeiT']
