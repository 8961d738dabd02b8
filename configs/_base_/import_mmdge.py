# What every config lists whose model has a dynamic backbone, or its dense
# twin; beside runtime.py, or a host's own config.
custom_imports = dict(imports=['mmdge'], allow_failed_imports=False)

# Configs of version 0.1 refer to these as custom_hooks={{_base_.dge_hooks}}.
dge_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=0.0),
    dict(type='mmdge.RoutingWarmupHook', begin=0.1, end=0.3),
    dict(type='mmdge.GranularityVisHook'),
]
dge_learned_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=1.0),
    dict(type='mmdge.GranularityVisHook'),
]
