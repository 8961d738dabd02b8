# The dense twin of retinanet_dge-pvtv2_fpn_shapes.py, half of PVTv2-B1's width
_base_ = './retinanet_pvt_fpn_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEPVTv2',
        arch=dict(
            embed_dims=(32, 64, 128, 256),
            num_layers=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
        ),
        routing='finest',
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
    )
)
