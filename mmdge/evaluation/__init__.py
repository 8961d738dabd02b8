"""Metrics."""

from .backbone_flops import BackboneFLOPs

__all__ = ['BackboneFLOPs']
