_base_ = './pvt_shapes.py'

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        with_cls_token=True, out_type='cls_token', pretrain_img_size=96
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=4,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
