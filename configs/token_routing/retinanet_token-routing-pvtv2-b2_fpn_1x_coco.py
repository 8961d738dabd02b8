_base_ = './retinanet_pvtv2-b2_fpn_1x_coco.py'

model = dict(backbone=dict(routing='learned'))
default_hooks = dict(cost=dict(budget=0.95, loss_weight=10.0))
