# The dense twin, and teacher, of dynamic-vit-s_8xb128_in1k.py: DeiT-S as
# mmpretrain has trained it, here for 30 epochs more, so that both had as many.
_base_ = [
    '../_base_/models/classifier_pvt.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/cls_runtime.py',
    '../_base_/import_mmdge.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DGEDeiT',
        arch='small',
        routing='finest',
        out_type='cls_token',
        drop_path_rate=0.0,
    ),
    head=dict(type='VisionTransformerClsHead', in_channels=384),
)
load_from = (
    'https://mmassets.onedl.ai/mmclassification/v0/deit/'
    'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
)
train_dataloader = dict(batch_size=128)
# A list, as in the other configs.
val_evaluator = [{{_base_.val_evaluator}}]
test_evaluator = val_evaluator

# DynamicViT's recipe: what is trained already takes steps of 1e-5.
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'cls_token': dict(lr_mult=0.0),
            'pos_embed': dict(lr_mult=0.0),
        },
    ),
)
epochs = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, **epochs),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=5, **epochs),
]
auto_scale_lr = dict(base_batch_size=1024)
