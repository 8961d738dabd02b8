"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .convnext import ConvNeXt
from .lvvit import LVViT
from .pvt import PVT
from .swin import Swin
from .vit import ViT

# An LV-ViT's entries are those of a ViT, and more.
LAYOUTS = (
    *PVT.layouts,
    *Swin.layouts,
    *ConvNeXt.layouts,
    *LVViT.layouts,
    *ViT.layouts,
)

__all__ = [
    'LAYOUTS',
    'PVT',
    'Backbone',
    'ConvNeXt',
    'LVViT',
    'Swin',
    'ViT',
    'backbone_class',
]
