_base_ = './convnext-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='mmdge.DynamicConvNeXt', keep_ratio=0.7, routing='learned'
    )
)
default_hooks = dict(
    # The paper's 10 is for the share of the slow path, m; here the loss is of
    # the compute, m + (1 - m) / 8: 10 / (7 / 8)**2.
    cost=dict(budget=0.8, loss_weight=13.0),
    distill=dict(
        type='mmdge.DistillHook',
        teacher={{_base_.load_from}},
        targets=[
            # The normed mean of the last map; the official code compares the
            # map itself, normed.
            dict(module='backbone', loss_weight=0.5),
            dict(module='head.fc', loss='kl', loss_weight=0.5),
        ],
    ),
)
# As for dynamic-swin-t_8xb128_in1k.py.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'score_predictor': dict(lr_mult=5.0),
            'fast_path': dict(lr_mult=5.0),
        }
    )
)
