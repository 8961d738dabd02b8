_base_ = './retinanet_deit-t_simplefpn_1x_coco.py'

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
