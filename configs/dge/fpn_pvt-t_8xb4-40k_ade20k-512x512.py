_base_ = [
    '../_base_/models/fpn_pvt.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_40k.py',
    '../_base_/seg_iters_runtime.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/'
            'pvt_tiny.pth',
        ),
    ),
)
