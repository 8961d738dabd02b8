# What every config with a dynamic backbone, or its dense twin, needs.
custom_imports = dict(imports=['mmdge'], allow_failed_imports=False)
custom_hooks = [
    dict(type='mmdge.CostHook', budget=1.0),
    dict(type='mmdge.GranularityVisHook'),
]
