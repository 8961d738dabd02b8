"""Data sets drawn by mmdge, images of any; needs no host library."""

from .loading import image_loader, plain_datasets
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
    'image_loader',
    'plain_datasets',
    'write_shapes',
]
