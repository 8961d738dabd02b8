# A learned ranking of the regions, which starts as the variance's.
_base_ = './retinanet_dge-pvt_fpn_shapes.py'

model = dict(
    backbone=dict(
        routing=dict(_delete_=True, type='QuantileRouter', score='learned'),
        sparse_training=True,
    )
)
