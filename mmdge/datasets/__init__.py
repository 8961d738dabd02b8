"""Data sets drawn by mmdge itself; importing needs no host library."""

from .scenes import (
    CLASSES,
    PALETTE,
    SEM_CLASSES,
    SEM_PALETTE,
    Scene,
    draw_scene,
)
from .shapes import write_shapes

__all__ = [
    'CLASSES',
    'PALETTE',
    'SEM_CLASSES',
    'SEM_PALETTE',
    'Scene',
    'draw_scene',
    'write_shapes',
]
