"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .lvvit import LVViT
from .pvt import PVT
from .vit import ViT

# An LV-ViT's entries are those of a ViT, and more.
LAYOUTS = (*PVT.layouts, *LVViT.layouts, *ViT.layouts)

__all__ = ['LAYOUTS', 'PVT', 'Backbone', 'LVViT', 'ViT', 'backbone_class']
