# configs/shapes/retinanet_dge-pvt_fpn_shapes.py of version 0.1, flattened: as
# users have it, hooks in custom_hooks, the FLOPs' metric by name.
custom_hooks = [
    dict(budget=0.5, loss_weight=0.0, type='mmdge.CostHook'),
    dict(begin=0.3, end=0.6, type='mmdge.RoutingWarmupHook'),
    dict(type='mmdge.GranularityVisHook'),
]
custom_imports = dict(allow_failed_imports=False, imports=['mmdge'])
default_hooks = dict(
    checkpoint=dict(
        interval=1, max_keep_ckpts=3, type='mmdge.SafeCheckpointHook'
    ),
    logger=dict(interval=20, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='DetVisualizationHook'),
)
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
)
load_from = None
log_level = 'INFO'
log_processor = dict(by_epoch=True, type='LogProcessor', window_size=20)
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=(32, 64, 128, 256),
            num_heads=(1, 2, 4, 8),
            num_layers=(2, 2, 2, 2),
        ),
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
        pretrain_img_size=256,
        routing='variance',
        type='mmdge.DGEPVT',
    ),
    bbox_head=dict(
        anchor_generator=dict(
            octave_base_scale=4,
            ratios=[1.0],
            scales_per_octave=3,
            strides=[8, 16, 32],
            type='AnchorGenerator',
        ),
        bbox_coder=dict(
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0],
            type='DeltaXYWHBBoxCoder',
        ),
        feat_channels=96,
        in_channels=96,
        loss_bbox=dict(type='L1Loss'),
        loss_cls=dict(
            alpha=0.25, gamma=2.0, type='FocalLoss', use_sigmoid=True
        ),
        num_classes=4,
        stacked_convs=2,
        type='RetinaHead',
    ),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[123.675, 116.28, 103.53],
        pad_size_divisor=32,
        std=[58.395, 57.12, 57.375],
        type='DetDataPreprocessor',
    ),
    neck=dict(
        in_channels=[64, 128, 256], num_outs=3, out_channels=96, type='FPN'
    ),
    test_cfg=dict(
        max_per_img=100,
        min_bbox_size=0,
        nms=dict(iou_threshold=0.5, type='nms'),
        nms_pre=1000,
        score_thr=0.05,
    ),
    train_cfg=dict(
        allowed_border=-1,
        assigner=dict(
            min_pos_iou=0,
            neg_iou_thr=0.4,
            pos_iou_thr=0.5,
            type='MaxIoUAssigner',
        ),
        pos_weight=-1,
        sampler=dict(type='PseudoSampler'),
    ),
    type='RetinaNet',
)
optim_wrapper = dict(
    clip_grad=dict(max_norm=1.0),
    optimizer=dict(lr=0.001, type='AdamW', weight_decay=0.05),
    type='OptimWrapper',
)
param_scheduler = [
    dict(by_epoch=False, end=30, start_factor=0.01, type='LinearLR'),
    dict(
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=1e-05,
        type='CosineAnnealingLR',
    ),
]
randomness = dict(seed=0)
resume = False
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        data_root='data/shapes/',
        metainfo=dict(classes=('rows', 'columns', 'checks', 'rings')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(scale_factor=1.0, type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset',
    ),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = [
    dict(
        ann_file='data/shapes/annotations/instances_val.json',
        metric='bbox',
        type='CocoMetric',
    ),
    dict(type='mmdge.BackboneFLOPs'),
]
train_cfg = dict(max_epochs=6, type='EpochBasedTrainLoop', val_interval=6)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        data_root='data/shapes/',
        metainfo=dict(classes=('rows', 'columns', 'checks', 'rings')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(scale_factor=1.0, type='Resize'),
            dict(
                direction=['horizontal', 'vertical'],
                prob=0.5,
                type='RandomFlip',
            ),
            dict(type='PackDetInputs'),
        ],
        type='CocoDataset',
    ),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=True, type='DefaultSampler'),
)
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        data_root='data/shapes/',
        metainfo=dict(classes=('rows', 'columns', 'checks', 'rings')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(scale_factor=1.0, type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset',
    ),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = [
    dict(
        ann_file='data/shapes/annotations/instances_val.json',
        metric='bbox',
        type='CocoMetric',
    ),
    dict(type='mmdge.BackboneFLOPs'),
]
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
