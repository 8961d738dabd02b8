"""The names that PVT's weights have in other code bases."""

from __future__ import annotations

from ..weights import HEAD, ROUTER, Layout

# The first whose mark is found counts.
PVT_LAYOUTS = (
    Layout(
        *('PVT', 'vtpack', r'block\d\.\d+\.dge\..*'),  # the official DGE code
        rows=(
            ('.dge.router.', '.router.'),
            ('.dge.splits', '.router.sides', 'splits'),
        ),
        no_place=r'.*\.router\.(?!gate\.|sides$).*',
        container='model',
    ),
    Layout(
        *('PVT', 'mmdge', r'block\d\.\d+\.router\..*', (), HEAD, 'state_dict')
    ),
    Layout(
        *('PVT', 'mmdet', r'layers\.\d\.1\.0\.pos_embed'),
        rows=(
            ('.attn.attn.in_proj_', '.attn.q.', 'qkv'),
            ('.attn.attn.out_proj.', '.attn.proj.'),
            ('.ffn.layers.0.', '.mlp.fc1.', 'conv'),
            ('.ffn.layers.3.', '.mlp.fc2.', 'conv'),
            *(
                row
                for s in range(1, 5)
                for row in (
                    (f'layers.{s - 1}.0.projection.', f'patch_embed{s}.proj.'),
                    (f'layers.{s - 1}.0.norm.', f'patch_embed{s}.norm.'),
                    (f'layers.{s - 1}.1.0.pos_embed', f'pos_embed{s}'),
                    *(
                        (f'layers.{s - 1}.1.{j + 1}.', f'block{s}.{j}.')
                        for j in range(99)  # blocks of a stage
                    ),
                )
            ),
        ),
        no_place=rf'cls_token|norm\..*|{HEAD}|{ROUTER}',
        container='state_dict',
    ),
    # A static PVT of ours has the same names.
    Layout('PVT', 'official', r'block\d\.\d+\.attn\..*', (), ROUTER),
)
