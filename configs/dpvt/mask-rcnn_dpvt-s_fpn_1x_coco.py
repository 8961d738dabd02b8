_base_ = '../dge/mask-rcnn_pvt-s_fpn_1x_coco.py'

# Nobody has published weights: those of dpvt-s_8xb128_in1k-256px.py.
model = dict(
    backbone=dict(
        type='mmdge.DGEDPVT',
        pretrain_img_size=256,
        init_cfg=dict(
            checkpoint='work_dirs/dpvt-s_8xb128_in1k-256px/epoch_300.pth',
        ),
    )
)
