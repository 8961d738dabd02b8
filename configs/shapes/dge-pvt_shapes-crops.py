_base_ = './pvt_shapes-crops.py'

# From mmdge.share_for_budget at 96 x 96, where the map of the last stage is a
# single region and the usual shares would spend .54.
share = (0.31, 0.22, 0.47)
model = dict(
    backbone=dict(
        routing=dict(_delete_=True, type='QuantileRouter', share=share)
    )
)
custom_hooks = {{_base_.shapes_dge_hooks}}  # budget 0.5
