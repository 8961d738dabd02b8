"""Metrics."""

from .backbone_flops import BackboneFLOPs
from .ratio_by_content import RatioByContent

__all__ = ['BackboneFLOPs', 'RatioByContent']
