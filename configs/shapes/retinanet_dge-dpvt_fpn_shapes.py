_base_ = './retinanet_dpvt_fpn_shapes.py'

model = dict(backbone=dict(routing='variance'))
default_hooks = dict(
    cost=dict(budget=0.5, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
)
