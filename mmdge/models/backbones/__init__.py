"""One architecture per file."""

from .base import DynamicBackbone, dynamic_class
from .dge_deit import DGEDeiT
from .dge_pvt import DGEPVT

__all__ = ['DGEPVT', 'DGEDeiT', 'DynamicBackbone', 'dynamic_class']
