_base_ = '../pvt_v2/fpn_pvtv2-b2_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(type='mmdge.TokenRoutingPVT', routing='learned'),
)
default_hooks = dict(cost=dict(budget=0.95, loss_weight=10.0))
