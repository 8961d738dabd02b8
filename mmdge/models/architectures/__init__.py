"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .convnext import ConvNeXt
from .lvvit import LVViT
from .pvt import PVT
from .pvt_v2 import PVTv2
from .swin import Swin
from .vit import ViT

# An LV-ViT's entries are those of a ViT, and more.
LAYOUTS = (
    *PVT.layouts,
    *PVTv2.layouts,
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
    'PVTv2',
    'Swin',
    'ViT',
    'backbone_class',
]
