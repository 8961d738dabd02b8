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
from .workers import seed_worker

__all__ = [
    'CLASSES',
    'PALETTE',
    'SEM_CLASSES',
    'SEM_PALETTE',
    'Scene',
    'draw_scene',
    'image_loader',
    'plain_datasets',
    'seed_worker',
    'write_shapes',
]
