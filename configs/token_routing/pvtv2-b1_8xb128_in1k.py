# The dense twin of token-routing-pvtv2-b1_8xb128_in1k.py
_base_ = [
    '../_base_/models/classifier_pvt.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/cls_runtime.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.TokenRoutingPVT',
        arch='b1',
        routing='finest',
        out_indices=3,
    ),
    neck=dict(type='GlobalAveragePooling'),
)
train_dataloader = dict(batch_size=128)
# A list, as in the other configs.
val_evaluator = [{{_base_.val_evaluator}}]
test_evaluator = val_evaluator
