_base_ = './pvt-t_8xb128_in1k-256px.py'

model = dict(backbone=dict(arch='large'))
