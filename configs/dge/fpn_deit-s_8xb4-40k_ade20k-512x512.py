_base_ = './fpn_deit-t_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/deit/'
            'deit_small_patch16_224-cd65a155.pth',
        ),
    ),
    neck=dict(in_channels=384),
)
