# Swin-T's schedule. (mmdet's ConvNeXt-T is trained for 3x, at several scales.)
_base_ = '../swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEConvNeXt',
        arch='tiny',
        routing='finest',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            # The weights that mmdet's and mmseg's ConvNeXt-T start from.
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/'
            'convnext/downstream/'
            'convnext-tiny_3rdparty_32xb128-noema_in1k_20220301-795e9634.pth',
        ),
    ),
)
