# The dense twin, and teacher, of dynamic-convnext-t_8xb128_in1k.py: ConvNeXt-T
# as mmpretrain has trained it, here for 120 epochs more, so that both had as
# many.
_base_ = '../swin/swin-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEConvNeXt',
        arch='tiny',
        routing='finest',
        drop_path_rate=0.2,
        out_indices=3,
        gap_before_final_norm=True,  # as in mmpretrain
    ),
    neck=None,
)
load_from = (
    'https://mmassets.onedl.ai/mmclassification/v0/convnext/'
    'convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth'
)
