# mmseg's config of this name, but for the backbone, and for images at test,
# whose sides are multiples of 32.
_base_ = [
    '../_base_/models/fpn_pvt.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_40k.py',
    '../_base_/seg_iters_runtime.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEPVTv2',
        arch='mit-b0',
        routing='finest',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/'
            'pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth',
        ),
    ),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='SegformerHead',
        in_channels=[32, 64, 160, 256],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
)
train_dataloader = dict(batch_size=2, num_workers=2)
train_cfg = dict(max_iters=160000, val_interval=16000)
default_hooks = dict(checkpoint=dict(interval=16000))
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'head': dict(lr_mult=10.0),
        }
    ),
)
iters = dict(by_epoch=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=1500, **iters),
    dict(type='PolyLR', power=1.0, begin=1500, end=160000, **iters),
]
auto_scale_lr = dict(base_batch_size=16)
