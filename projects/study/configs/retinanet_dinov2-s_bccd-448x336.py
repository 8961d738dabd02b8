# Blood cells on a frozen DINOv2-S: 32 x 24 tokens of 14 px. The pyramid's
# levels, of half a token, one and two, have 7, 14 and 28 px.
_base_ = './retinanet_pvt_fpn_bccd-320x240.py'

scale = (448, 336)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
# Without workers: the backbone, or its kept outputs, take the time.
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline), **loading)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline), **loading)
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(pad_size_divisor=28),
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEViT',
        arch='dinov2-small',
        routing='finest',
        drop_path_rate=0.0,
        frozen_stages=12,
        init_cfg=dict(type='Pretrained', checkpoint='data/dinov2_vits14.pth'),
    ),
    neck=dict(
        _delete_=True,
        type='mmdge.SimpleFPN',
        in_channels=384,
        out_channels=96,
        start_level=1,
        num_outs=3,
    ),
    bbox_head=dict(
        anchor_generator=dict(octave_base_scale=3, strides=[7, 14, 28])
    ),
)
train_cfg = dict(max_epochs=12, val_interval=12)
