# From scratch, as its dense twin; regions are chosen in the last third.
_base_ = './deit_shapes-crops.py'

model = dict(
    backbone=dict(type='mmdge.CFViT', routing='attention', num_classes=4),
    head=dict(
        _delete_=True,
        type='mmdge.CoarseToFineHead',
        loss=dict(type='CrossEntropyLoss'),
    ),
)
default_hooks = dict(
    cost=dict(budget=0.8, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.66, end=0.66),
)
