# The paper's form: Gumbel noise, all granularities in training, and a budget
# loss from the first step.
_base_ = './retinanet_dge-pvt_fpn_shapes.py'

model = dict(backbone=dict(routing='learned'))
custom_hooks = {{_base_.dge_learned_hooks}}  # budget 0.5, its loss weighs 1
