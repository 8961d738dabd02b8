"""From a backbone's maps to what a head needs."""

from .simple_fpn import SimpleFPN

__all__ = ['SimpleFPN']
