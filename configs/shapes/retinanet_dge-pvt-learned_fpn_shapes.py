# The paper's form: Gumbel noise, all granularities in training, and a budget
# loss from the first step.
_base_ = './retinanet_dge-pvt_fpn_shapes.py'

model = dict(backbone=dict(routing='learned'))
custom_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=1.0),
    dict(type='mmdge.GranularityVisHook'),
]
