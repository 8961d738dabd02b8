"""Static layers that work on packed rows, and know nothing of routing."""

from .embeddings import PatchEmbed, resize_pos_embed
from .transformer import TransformerBlock, add, packed_attention

__all__ = [
    'PatchEmbed',
    'TransformerBlock',
    'add',
    'packed_attention',
    'resize_pos_embed',
]
