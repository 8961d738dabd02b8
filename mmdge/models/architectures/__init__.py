"""Static backbones, and the names that others give their weights."""

from ._pvt_layouts import PVT_LAYOUTS
from ._vit_layouts import VIT_LAYOUTS

LAYOUTS = (*PVT_LAYOUTS, *VIT_LAYOUTS)

__all__ = ['LAYOUTS', 'PVT_LAYOUTS', 'VIT_LAYOUTS']
