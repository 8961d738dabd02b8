# About half of PVT-Tiny's width, for 256 x 256 images and two CPU cores.
model = dict(
    backbone=dict(
        type='mmdge.DGEPVT',
        arch=dict(
            embed_dims=(32, 64, 128, 256),
            num_layers=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
        ),
        routing='finest',
        drop_path_rate=0.0,
        pretrain_img_size=256,
    ),
)
