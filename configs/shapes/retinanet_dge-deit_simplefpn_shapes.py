_base_ = './retinanet_deit_simplefpn_shapes.py'

model = dict(backbone=dict(routing='variance'))
custom_hooks = {{_base_.shapes_dge_hooks}}  # budget 0.5
