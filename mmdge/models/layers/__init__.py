"""Static layers that work on packed rows, and know nothing of routing."""

from .block import Block, Prepared, add
from .embeddings import PatchEmbed, resize_pos_embed
from .transformer import TransformerBlock, packed_attention

__all__ = [
    'Block',
    'PatchEmbed',
    'Prepared',
    'TransformerBlock',
    'add',
    'packed_attention',
    'resize_pos_embed',
]
