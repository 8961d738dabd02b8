_base_ = './deit-t_8xb128_in1k-256px.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
