# As the linear one, but with a pyramid, of nominal strides 4 to 32: those of
# patches of 16 px.
_base_ = './linear_dinov2-s_camvid-476x364.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='mmdge.SimpleFPN',
        in_channels=384,
        out_channels=64,
        num_outs=4,
    ),
    decode_head=dict(
        _delete_=True,
        type='FPNHead',
        in_channels=[64, 64, 64, 64],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=64,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=6, val_interval=6)
