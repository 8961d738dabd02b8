# The dense twin of retinanet_dge-swin_fpn_shapes.py, a third of Swin-T's width
_base_ = './retinanet_pvt_fpn_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGESwin',
        arch=dict(embed_dims=32, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8)),
        routing='finest',
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
    )
)
