_base_ = './retinanet_deit_simplefpn_shapes.py'

model = dict(backbone=dict(routing='variance'))
# The shares meet the budget by construction; its loss would have no gradient.
custom_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=0.0),
    dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
    dict(type='mmdge.GranularityVisHook'),
]
