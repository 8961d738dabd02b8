"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .pvt import PVT
from .vit import ViT

LAYOUTS = (*PVT.layouts, *ViT.layouts)

__all__ = ['LAYOUTS', 'PVT', 'Backbone', 'ViT', 'backbone_class']
