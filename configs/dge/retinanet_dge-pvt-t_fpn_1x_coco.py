_base_ = './retinanet_pvt-t_fpn_1x_coco.py'

model = dict(backbone=dict(routing='variance'))
custom_hooks = {{_base_.dge_hooks}}  # budget 0.5: ../_base_/mmdge_runtime.py
