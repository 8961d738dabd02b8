# Give it the static weights, which also teach: load_from=CHECKPOINT
_base_ = './deit_shapes-crops.py'

model = dict(
    backbone=dict(
        type='mmdge.DynamicViT',
        keep_ratio=0.7,
        pruning_loc=(2, 3, 4),
        routing='learned',
    )
)
default_hooks = dict(
    cost=dict(budget=0.64, loss_weight=10.0),
    distill=dict(
        type='mmdge.DistillHook',
        targets=[
            dict(module='backbone.norm', loss_weight=0.5, kept_only=True),
            dict(module='head.fc', loss='kl', loss_weight=0.5),
        ],
    ),
)
max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# The predictors are new, the rest is trained already.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'head': dict(lr_mult=0.1),
            'score_predictor': dict(lr_mult=4.0),
        }
    ),
)
