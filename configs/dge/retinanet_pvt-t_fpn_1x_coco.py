_base_ = [
    'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py',
    '../_base_/import_mmdge.py',
]

# The same PVT as mmdet's, with its FLOPs reported.
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
