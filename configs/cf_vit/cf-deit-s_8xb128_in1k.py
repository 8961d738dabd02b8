# The paper's recipe at 224 px, from scratch.
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
        type='mmdge.CFViT',
        arch='small',
        alpha=0.5,
        num_classes=1000,
    ),
    head=dict(
        _delete_=True,
        type='mmdge.CoarseToFineHead',
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
    ),
)
default_hooks = dict(
    # Of all images, none of which leaves: calibrate_budget.py finds the price
    # at which some do.
    cost=dict(budget=0.87, loss_weight=0.0),
    # All regions are split in the first 201 of 300 epochs.
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.67, end=0.67),
)
train_dataloader = dict(batch_size=128)
# A list, as in the other configs.
val_evaluator = [{{_base_.val_evaluator}}]
test_evaluator = val_evaluator
