"""Layers that know packed queries, and nothing of routing."""

from .attention import SpatialReductionAttention
from .drop_path import DropPath
from .mlp import MLP
from .patch_embed import PatchEmbed
from .position import resize_pos_embed
from .residual import add

__all__ = [
    'MLP',
    'DropPath',
    'PatchEmbed',
    'SpatialReductionAttention',
    'add',
    'resize_pos_embed',
]
