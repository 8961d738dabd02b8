_base_ = './segformer_mit-b0_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='mit-b2',
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/'
            'pretrain/segformer/mit_b2_20220624-66e8bf70.pth',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
