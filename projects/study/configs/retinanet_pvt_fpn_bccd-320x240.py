# Blood cells under the microscope; the study's README tells where to get them.
_base_ = '../../../configs/shapes/retinanet_pvt_fpn_shapes.py'

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
scale = (320, 240)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, metainfo=metainfo, pipeline=train_pipeline
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, metainfo=metainfo, pipeline=test_pipeline
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='CocoMetric',
        ann_file=data_root + 'annotations/instances_val.json',
        metric='bbox',
        # Of small objects there are few; of platelets, small cells, enough.
        classwise=True,
    ),
    dict(type='mmdge.BackboneFLOPs'),
]
test_evaluator = val_evaluator
model = dict(
    bbox_head=dict(num_classes=3, anchor_generator=dict(octave_base_scale=2)),
)
train_cfg = dict(max_epochs=10, val_interval=10)
