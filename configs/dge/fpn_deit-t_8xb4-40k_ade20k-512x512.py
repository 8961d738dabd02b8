_base_ = './fpn_pvt-t_8xb4-40k_ade20k-512x512.py'

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
        num_outs=4,  # strides 4 to 32
    ),
)
