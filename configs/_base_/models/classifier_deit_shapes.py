# A small DeiT with patches of 8 px: stripes of 3 px are gone at 16.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='mmdge.DGEDeiT',
        arch=dict(
            embed_dims=64,
            num_layers=6,
            num_heads=4,
            feedforward_channels=256,
        ),
        patch_size=8,
        routing='finest',
        out_type='cls_token',
        drop_path_rate=0.0,
        pretrain_img_size=96,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=4,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
