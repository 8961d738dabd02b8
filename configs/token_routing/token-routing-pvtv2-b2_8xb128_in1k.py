# From scratch and all open at first, as in the paper.
_base_ = './pvtv2-b2_8xb128_in1k.py'

model = dict(backbone=dict(routing='learned', gate_init='open'))
default_hooks = dict(cost=dict(budget=0.95))
