_base_ = './retinanet_pvt-t_fpn_1x_coco.py'

# The schedule is PVT's, untuned for DeiT; that and the neck are ours.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEDeiT',
        arch='tiny',
        routing='finest',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/'
            'deit_tiny_patch16_224-a1311bcf.pth',
        ),
    ),
    neck=dict(
        _delete_=True,
        type='mmdge.SimpleFPN',
        in_channels=192,
        start_level=1,  # strides 8 to 128
    ),
)
