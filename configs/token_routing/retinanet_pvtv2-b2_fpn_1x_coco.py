_base_ = '../dge/retinanet_pvt-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.TokenRoutingPVT',
        arch='b2',
        routing='finest',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/'
            'pvt_v2_b2.pth',
        ),
    ),
)
