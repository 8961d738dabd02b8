_base_ = './segformer_mit-b2_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(routing='variance'))
default_hooks = dict(
    cost=dict(budget=0.53, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
)
