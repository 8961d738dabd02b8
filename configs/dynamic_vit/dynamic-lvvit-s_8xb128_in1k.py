# Give it the same weights as its dense twin, which also teach.
_base_ = './lvvit-s_8xb128_in1k.py'

model = dict(backbone=dict(keep_ratio=0.7, routing='learned'))
default_hooks = dict(
    cost=dict(budget=0.71, loss_weight=2.0),
    distill=dict(
        type='mmdge.DistillHook',
        targets=[
            # The official code compares what the second head makes of these.
            dict(module='backbone.norm', loss_weight=0.5, kept_only=True),
            dict(module='head.fc', loss='kl', loss_weight=0.5),
        ],
    ),
)
# As for dynamic-vit-s_8xb128_in1k.py.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'score_predictor': dict(lr_mult=100.0)})
)
