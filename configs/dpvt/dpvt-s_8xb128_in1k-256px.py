_base_ = '../dge/pvt-s_8xb128_in1k-256px.py'

# As in the official code: the mean of the map, 20 epochs of warm-up.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEDPVT',
        arch='small',
        routing='finest',
        out_type='avg_featmap',
        pretrain_img_size=256,
    )
)
param_scheduler = {{_base_.dge_param_scheduler}}
