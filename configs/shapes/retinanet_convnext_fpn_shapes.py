# The dense twin of retinanet_dge-convnext_fpn_shapes.py, a third as wide as T
_base_ = './retinanet_pvt_fpn_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEConvNeXt',
        arch=dict(channels=(32, 64, 128, 256), depths=(2, 2, 6, 2)),
        layer_scale_init_value=1.0,
        routing='finest',
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
    )
)
