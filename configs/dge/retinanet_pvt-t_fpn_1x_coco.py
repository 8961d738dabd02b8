_base_ = [
    'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py',
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
# Checkpoints that a killed training goes on from: docs/reliability.md.
default_hooks = dict(checkpoint=dict(type='mmdge.SafeCheckpointHook'))
val_evaluator = [
    {{_base_.val_evaluator}},
    dict(type='mmdge.BackboneFLOPs'),
]
test_evaluator = val_evaluator
