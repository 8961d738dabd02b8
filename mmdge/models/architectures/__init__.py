"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .pvt import PVT
from .swin import Swin
from .vit import ViT

LAYOUTS = (*PVT.layouts, *Swin.layouts, *ViT.layouts)

__all__ = ['LAYOUTS', 'PVT', 'Backbone', 'Swin', 'ViT', 'backbone_class']
