_base_ = './mask-rcnn_pvt-s_fpn_ms-3x_coco.py'

model = dict(backbone=dict(routing='variance'))
custom_hooks = {{_base_.dge_hooks}}  # budget 0.5: ../_base_/mmdge_runtime.py
