# Give it the static weights, which also teach: load_from=CHECKPOINT
_base_ = './retinanet_swin_fpn_shapes.py'

model = dict(
    backbone=dict(type='mmdge.DynamicSwin', keep_ratio=0.7, routing='learned')
)
default_hooks = dict(
    cost=dict(budget=0.91, loss_weight=13.0),
    distill=dict(
        type='mmdge.DistillHook',
        targets=[dict(module='backbone', loss_weight=0.5)],
    ),
)
max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# Predictors and fast paths are new, the rest is trained already.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'neck': dict(lr_mult=0.1),
            'bbox_head': dict(lr_mult=0.1),
            'score_predictor': dict(lr_mult=4.0),
            'fast_path': dict(lr_mult=1.0),
        }
    ),
)
