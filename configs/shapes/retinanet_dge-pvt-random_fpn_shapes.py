# Control: the same shares and schedule, but regions chosen at random.
_base_ = './retinanet_dge-pvt_fpn_shapes.py'

model = dict(backbone=dict(routing='random'))
