_base_ = './swin-t_8xb128_in1k.py'

model = dict(
    backbone=dict(type='mmdge.DynamicSwin', keep_ratio=0.7, routing='learned')
)
default_hooks = dict(
    # The paper's 10 is for the share of the slow path, m; here the loss is of
    # the compute, m + (1 - m) / 8: 10 / (7 / 8)**2.
    cost=dict(budget=0.9, loss_weight=13.0),
    distill=dict(
        type='mmdge.DistillHook',
        teacher={{_base_.load_from}},
        targets=[
            dict(module='backbone', loss_weight=0.5),  # the last normed map
            dict(module='head.fc', loss='kl', loss_weight=0.5),
        ],
    ),
)
# The paper's 4e-3 for what is new. MMEngine has no schedule for a part of the
# model: what the official code holds still for the first 5 epochs is warmed up
# here. Norms and biases of what is new decay, too.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'score_predictor': dict(lr_mult=5.0),
            'fast_path': dict(lr_mult=5.0),
        }
    )
)
