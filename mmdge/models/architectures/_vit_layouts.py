"""The names that ViT's weights have in other code bases."""

from __future__ import annotations

from ..weights import HEAD, ROUTER, Layout

_OPENMMLAB = (
    ('patch_embed.projection.', 'patch_embed.proj.'),
    ('.ln1.', '.norm1.'),
    ('.ln2.', '.norm2.'),
    ('.ffn.layers.0.0.', '.mlp.fc1.'),
    ('.ffn.layers.1.', '.mlp.fc2.'),
    ('layers.', 'blocks.'),
    ('ln1.', 'norm.'),
    ('ln2.', 'fc_norm.'),  # of the mean token
)

# The first whose mark is found counts.
VIT_LAYOUTS = (
    Layout(
        *('DeiT', 'vtpack', r'blocks\.\d+\.dge\..*'),  # the official DGE code
        rows=(
            ('.dge.router.', '.router.'),
            ('.dge.splits', '.router.sides', 'splits'),
        ),
        no_place=r'.*\.router\.(?!gate\.|sides$).*',
        container='model',
    ),
    Layout(
        *('DeiT', 'mmpretrain', r'layers\.\d+\.attn\.qkv\..*'),
        rows=(('.attn.qkv.', '.attn.q.', 'qkv'), *_OPENMMLAB),
        no_place=rf'{HEAD}|{ROUTER}',
        container='state_dict',
    ),
    Layout(
        *('DeiT', 'mmseg', r'layers\.\d+\.attn\.attn\.in_proj_.*'),
        rows=(
            ('.attn.attn.in_proj_', '.attn.q.', 'qkv'),
            ('.attn.attn.out_proj.', '.attn.proj.'),
            *_OPENMMLAB,
        ),
        no_place=rf'dist_token|{HEAD}|{ROUTER}',
        container='state_dict',
    ),
    Layout(  # timm's and MAE's, too
        *('DeiT', 'official', r'blocks\.\d+\.attn\.qkv\..*'),
        rows=(('.attn.qkv.', '.attn.q.', 'qkv'),),
        no_place=ROUTER,
        container='model',
    ),
    Layout(
        *('DeiT', 'mmdge', r'blocks\.\d+\.attn\.q\..*', (), HEAD, 'state_dict')
    ),
)
