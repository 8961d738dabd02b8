# Give it the static weights, which also teach: load_from=CHECKPOINT
_base_ = './fpn_convnext-t_8xb4-40k_ade20k-512x512.py'

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
    optimizer=dict(lr=2e-5),
    paramwise_cfg=dict(
        custom_keys={
            'score_predictor': dict(lr_mult=10.0),
            'fast_path': dict(lr_mult=10.0),
        }
    ),
)
