# The dense twin of retinanet_dge-dpvt_fpn_shapes.py
_base_ = './retinanet_pvt_fpn_shapes.py'

model = dict(backbone=dict(type='mmdge.DGEDPVT'))
