# What every config with a dynamic backbone, or its dense twin, needs.
custom_imports = dict(imports=['mmdge'], allow_failed_imports=False)
# A dynamic config says what it wants to spend: cost=dict(budget=0.5). With
# loss_weight=0.0 it is what the log holds the ratio against: routers with
# shares spend those, and a loss would have no gradient (docs/routing.md).
default_hooks = dict(
    cost=dict(type='mmdge.CostHook', budget=1.0),
    granularity=dict(type='mmdge.GranularityVisHook'),
)

# Configs of version 0.1 refer to these.
dge_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=0.0),
    dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
]
dge_learned_hooks = [dict(type='mmdge.CostHook', budget=0.5, loss_weight=1.0)]
