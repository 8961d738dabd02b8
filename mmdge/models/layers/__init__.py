"""Static layers that work on packed rows, and know nothing of routing."""

from .block import Block, Prepared, add
from .deformable import DeformableBlock
from .embeddings import PatchEmbed, pad_to_patch, resize_pos_embed
from .transformer import TransformerBlock, in_parts, packed_attention
from .window import SwinBlock

__all__ = [
    'Block',
    'DeformableBlock',
    'PatchEmbed',
    'Prepared',
    'SwinBlock',
    'TransformerBlock',
    'add',
    'in_parts',
    'packed_attention',
    'pad_to_patch',
    'resize_pos_embed',
]
