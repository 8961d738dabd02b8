_base_ = './mask-rcnn_pvt-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.0,  # as PVT's authors have it from medium on
        init_cfg=dict(
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/'
            'pvt_large.pth',
        ),
    )
)
optim_wrapper = dict(type='AmpOptimWrapper')  # the large one needs it
