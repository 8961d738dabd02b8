_base_ = './retinanet_dpvt-s_fpn_1x_coco.py'

model = dict(backbone=dict(routing='variance'))
default_hooks = dict(
    cost=dict(budget=0.5, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
)
