# The dense twin, and teacher, of dynamic-swin-t_8xb128_in1k.py: Swin-T as
# mmpretrain has trained it, here for 120 epochs more, so that both had as
# many.
_base_ = [
    '../_base_/models/classifier_pvt.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/imagenet_120e.py',
    '../_base_/cls_runtime.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGESwin',
        arch='tiny',
        routing='finest',
        drop_path_rate=0.2,
        pad_small_map=False,  # as in mmpretrain
        out_indices=3,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=768),
)
load_from = (
    'https://mmassets.onedl.ai/mmclassification/v0/swin-transformer/'
    'swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth'
)
train_dataloader = dict(batch_size=128)
# A list, as in the other configs.
val_evaluator = [{{_base_.val_evaluator}}]
test_evaluator = val_evaluator
