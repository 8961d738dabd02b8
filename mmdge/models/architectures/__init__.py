"""Static backbones in the hosts' terms, whose blocks a method may route."""

from .base import Backbone, backbone_class
from .convnext import ConvNeXt
from .dpvt import DPVT
from .lvvit import LVViT
from .pvt import PVT
from .pvt_v2 import PVTv2
from .swin import Swin
from .vit import ViT

# The entries of a DPVT are those of a PVT, and more, and so with LV-ViT.
LAYOUTS = (
    *DPVT.layouts,
    *PVT.layouts,
    *PVTv2.layouts,
    *Swin.layouts,
    *ConvNeXt.layouts,
    *LVViT.layouts,
    *ViT.layouts,
)

__all__ = [
    'DPVT',
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
