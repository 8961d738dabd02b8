"""Static layers that work on packed rows, and know nothing of routing."""

from .block import Block, Prepared, add
from .embeddings import PatchEmbed, resize_pos_embed
from .transformer import TransformerBlock, packed_attention
from .window import SwinBlock

__all__ = [
    'Block',
    'PatchEmbed',
    'Prepared',
    'SwinBlock',
    'TransformerBlock',
    'add',
    'packed_attention',
    'resize_pos_embed',
]
