_base_ = '../dge/fpn_pvt-t_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEPVTv2',
        arch='b2',
        routing='finest',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/'
            'pvt_v2_b2.pth',
        ),
    ),
)
