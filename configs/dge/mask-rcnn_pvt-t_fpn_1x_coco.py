_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEPVT',
        arch='tiny',
        routing='finest',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/'
            'pvt_tiny.pth',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
# As in the detection code of PVT's authors.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4)
)
default_hooks = dict(
    cost=dict(type='mmdge.CostHook', budget=1.0),
    granularity=dict(type='mmdge.GranularityVisHook'),
    # What a killed training goes on from: docs/training.md.
    checkpoint=dict(type='mmdge.SafeCheckpointHook'),
)
# A list, as in the other configs: its file is val_evaluator.0.ann_file.
val_evaluator = [{{_base_.val_evaluator}}]
test_evaluator = val_evaluator
