_base_ = './pvt-m_8xb128_in1k-256px.py'

# As published: the paper's router, 20 epochs of warm-up instead of 5.
model = dict(backbone=dict(routing='learned'))
default_hooks = dict(cost=dict(budget=0.5))  # its loss weighs 1
param_scheduler = {{_base_.dge_param_scheduler}}
