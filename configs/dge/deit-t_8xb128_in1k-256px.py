_base_ = './pvt-t_8xb128_in1k-256px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEDeiT',
        arch='tiny',
        routing='finest',
        out_type='cls_token',
        pretrain_img_size=256,
    ),
    head=dict(in_channels=192),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'pos_embed': dict(decay_mult=0.0)})
)
