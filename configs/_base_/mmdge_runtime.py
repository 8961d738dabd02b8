# For configs of version 0.1, which list it: those here have their hooks among
# the default_hooks, where one entry can be changed and the others stay.
_base_ = './import_mmdge.py'

custom_hooks = [
    dict(type='mmdge.CostHook', budget=1.0),
    dict(type='mmdge.GranularityVisHook'),
]
