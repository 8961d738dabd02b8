# DETR's multi-scale pipeline and 36 epochs, as mmdet has them for Swin.
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEPVT',
        arch='small',
        routing='finest',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/'
            'pvt_small.pth',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
        }
    )
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
