# The form of version 0.1, which configs of that time build upon; those here
# have their hooks from runtime.py.
custom_imports = dict(imports=['mmdge'], allow_failed_imports=False)
custom_hooks = [
    dict(type='mmdge.CostHook', budget=1.0),
    dict(type='mmdge.GranularityVisHook'),
]

# For routers with shares, which are what is spent: docs/routing.md tells how
# to change them. A loss would have no gradient; `budget` is what the log holds
# the ratio against. The paper publishes no recipe for COCO and ADE20K: there
# routing, budget and warm-up are ours.
dge_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=0.0),
    dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
    dict(type='mmdge.GranularityVisHook'),
]

# For the paper's router, which learns the amount: the paper's budget loss.
dge_learned_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=1.0),
    dict(type='mmdge.GranularityVisHook'),
]
