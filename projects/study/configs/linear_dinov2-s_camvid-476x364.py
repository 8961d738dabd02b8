# A linear head on a frozen DINOv2-S: 34 x 26 tokens of 14 px.
# The study's README tells where to get data and weights.
_base_ = './fpn_pvt_camvid-256x192.py'

scale = (476, 364)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# Without workers: the backbone, or its kept outputs, take the time.
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4, dataset=dict(pipeline=train_pipeline), **loading
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline), **loading)
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size_divisor=14),
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEViT',
        arch='dinov2-small',
        routing='finest',
        drop_path_rate=0.0,
        frozen_stages=12,
        init_cfg=dict(type='Pretrained', checkpoint='data/dinov2_vits14.pth'),
    ),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=384,
        channels=384,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=11,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
)
train_cfg = dict(max_epochs=12, val_interval=12)
optim_wrapper = dict(
    optimizer=dict(lr=5e-3, weight_decay=1e-4), clip_grad=None
)
param_scheduler = [dict(type='PolyLR', power=0.9, by_epoch=False)]
