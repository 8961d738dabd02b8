"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .convnext import ConvNeXt
from .pvt import PVT
from .vit import ViT

LAYOUTS = (*PVT.layouts, *ViT.layouts, *ConvNeXt.layouts)

__all__ = [
    'LAYOUTS',
    'PVT',
    'Backbone',
    'ConvNeXt',
    'ViT',
    'backbone_class',
]
