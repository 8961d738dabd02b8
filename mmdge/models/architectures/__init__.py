"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .pvt import PVT
from .pvt_v2 import PVTv2
from .vit import ViT

LAYOUTS = (*PVT.layouts, *PVTv2.layouts, *ViT.layouts)

__all__ = ['LAYOUTS', 'PVT', 'Backbone', 'PVTv2', 'ViT', 'backbone_class']
