_base_ = './fpn_dpvt-s_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(routing='variance'))
default_hooks = dict(
    cost=dict(budget=0.5, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
)
