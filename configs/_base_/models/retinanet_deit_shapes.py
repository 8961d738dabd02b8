# A small DeiT with patches of 8 px: stripes of 3 px are gone at 16.
_base_ = './retinanet_pvt_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEDeiT',
        arch=dict(
            embed_dims=128,
            num_layers=4,
            num_heads=4,
            feedforward_channels=512,
        ),
        patch_size=8,
        routing='finest',
        drop_path_rate=0.0,
        pretrain_img_size=256,
    ),
    neck=dict(
        _delete_=True,
        type='mmdge.SimpleFPN',
        in_channels=128,
        out_channels=96,
        in_stride=8,
        start_level=1,
        num_outs=3,
    ),
)
