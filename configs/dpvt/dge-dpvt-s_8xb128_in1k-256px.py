_base_ = './dpvt-s_8xb128_in1k-256px.py'

# As published for PVT: the paper's router.
model = dict(backbone=dict(routing='learned'))
default_hooks = dict(cost=dict(budget=0.5))  # its loss weighs 1
