# Give it the static weights, which also teach: load_from=CHECKPOINT
_base_ = '../dge/mask-rcnn_deit-s_simplefpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmdge.DynamicViT',
        keep_ratio=0.7,
        routing='learned',
        # In training attention is masked, not cut short: 0.4 GB for each
        # block of each image, many times over if all blocks are kept.
        with_cp=True,
    )
)
default_hooks = dict(
    cost=dict(budget=0.54, loss_weight=2.0),
    distill=dict(
        type='mmdge.DistillHook',
        targets=[dict(module='backbone', loss_weight=0.5, kept_only=True)],
    ),
)
# The predictors are new, the rest is trained already. This is ours: nobody
# has published a recipe for dense tasks.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'neck': dict(lr_mult=0.1),
            'rpn_head': dict(lr_mult=0.1),
            'roi_head': dict(lr_mult=0.1),
            'score_predictor': dict(lr_mult=1.0),
        }
    )
)
