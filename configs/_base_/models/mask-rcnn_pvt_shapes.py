_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEPVT',
        arch=dict(  # as in pvt_shapes.py
            embed_dims=(32, 64, 128, 256),
            num_layers=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
        ),
        routing='finest',
        drop_path_rate=0.0,
        pretrain_img_size=256,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2), out_channels=64, finest_scale=28
        ),
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            num_classes=4,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2), out_channels=64, finest_scale=28
        ),
        mask_head=dict(
            num_convs=2, in_channels=64, conv_out_channels=64, num_classes=4
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
