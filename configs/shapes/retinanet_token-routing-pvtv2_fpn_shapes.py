# Give it the static weights: load_from=CHECKPOINT
_base_ = './retinanet_pvtv2_fpn_shapes.py'

model = dict(backbone=dict(type='mmdge.TokenRoutingPVT', routing='learned'))
default_hooks = dict(cost=dict(budget=0.7, loss_weight=10.0))
max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# The gates are new, the rest is trained already.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'neck': dict(lr_mult=0.1),
            'bbox_head': dict(lr_mult=0.1),
            'router.gate': dict(lr_mult=4.0, decay_mult=0.0),
        }
    ),
)
