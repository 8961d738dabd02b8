# Give it the static weights, which also teach: load_from=CHECKPOINT
_base_ = './mask-rcnn_convnext-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmdge.DynamicConvNeXt', keep_ratio=0.7, routing='learned'
    )
)
default_hooks = dict(
    cost=dict(budget=0.8, loss_weight=13.0),
    distill=dict(
        type='mmdge.DistillHook',
        targets=[dict(module='backbone', loss_weight=0.5)],
    ),
)
# Predictors and fast paths are new, the rest is trained already and takes a
# tenth. This is ours: nobody has published a recipe for dense tasks.
optim_wrapper = dict(
    optimizer=dict(lr=1e-5),
    paramwise_cfg=dict(
        custom_keys={
            'score_predictor': dict(lr_mult=10.0),
            'fast_path': dict(lr_mult=10.0),
        }
    ),
)
