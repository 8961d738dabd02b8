_base_ = './retinanet_pvt-l_fpn_1x_coco.py'

model = dict(backbone=dict(routing='variance'))

# The paper publishes no recipe for COCO: this schedule is ours. The shares
# meet the budget by construction, so the budget loss has no weight.
custom_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=0.0),
    dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
    dict(type='mmdge.GranularityVisHook'),
]
