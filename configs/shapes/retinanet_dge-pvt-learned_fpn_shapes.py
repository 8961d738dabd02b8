# The paper's form: Gumbel noise, all granularities in training, and a budget
# loss from the first step.
_base_ = './retinanet_pvt_fpn_shapes.py'

model = dict(backbone=dict(routing='learned'))
default_hooks = dict(cost=dict(budget=0.5))  # its loss weighs 1
