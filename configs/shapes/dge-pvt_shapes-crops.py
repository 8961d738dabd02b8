_base_ = './pvt_shapes-crops.py'

# From mmdge.share_for_budget at 96 x 96, where the map of the last stage is a
# single region and the usual shares would spend .54.
share = (0.31, 0.22, 0.47)
model = dict(
    backbone=dict(
        routing=dict(_delete_=True, type='QuantileRouter', share=share)
    )
)
default_hooks = dict(
    cost=dict(budget=0.5, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
)
