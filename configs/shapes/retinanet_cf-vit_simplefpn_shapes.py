# Give it the static weights: load_from=CHECKPOINT
_base_ = './retinanet_deit_simplefpn_shapes.py'

model = dict(backbone=dict(type='mmdge.CFViT', routing='attention'))
default_hooks = dict(
    cost=dict(budget=0.66, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.0, end=0.3),
)
max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# What the coarse pass hands on is new, the rest is trained already.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'neck': dict(lr_mult=0.1),
            'bbox_head': dict(lr_mult=0.1),
            'reuse_block': dict(lr_mult=1.0),
        }
    ),
)
