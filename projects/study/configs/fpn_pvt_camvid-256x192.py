# Street scenes, 11 classes; the study's README tells where to get them.
_base_ = '../../../configs/shapes/fpn_pvt_shapes.py'

scale = (256, 192)
classes = (
    'sky',
    'building',
    'pole',
    'road',
    'pavement',
    'tree',
    'sign',
    'fence',
    'car',
    'pedestrian',
    'bicyclist',
)
# Any colours do: one hue per class.
palette = [[23 * i, 250 - 22 * i, (90 * i) % 250] for i in range(11)]

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
camvid = dict(
    metainfo=dict(classes=classes, palette=palette),
    data_root='data/camvid/',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        pipeline=train_pipeline,
        **camvid,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'
        ),
        pipeline=test_pipeline,
        **camvid,
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='mmdge.EdgeIoU', thin=['pole', 'sign', 'pedestrian']),
]
test_evaluator = val_evaluator
model = dict(decode_head=dict(num_classes=11))
train_cfg = dict(max_epochs=10, val_interval=10)
