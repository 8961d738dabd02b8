"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .convnext import ConvNeXt
from .pvt import PVT
from .swin import Swin
from .vit import ViT

LAYOUTS = (*PVT.layouts, *Swin.layouts, *ViT.layouts, *ConvNeXt.layouts)

__all__ = [
    'LAYOUTS',
    'PVT',
    'Backbone',
    'ConvNeXt',
    'Swin',
    'ViT',
    'backbone_class',
]
