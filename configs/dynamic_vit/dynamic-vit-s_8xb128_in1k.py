_base_ = './deit-s_8xb128_in1k.py'

model = dict(
    backbone=dict(type='mmdge.DynamicViT', keep_ratio=0.7, routing='learned')
)
default_hooks = dict(
    # A loss of each predictor's keep ratio; all together spend this budget.
    cost=dict(budget=0.65, loss_weight=2.0),
    distill=dict(
        type='mmdge.DistillHook',
        teacher={{_base_.load_from}},
        targets=[
            dict(module='backbone.norm', loss_weight=0.5, kept_only=True),
            dict(module='head.layers.head', loss='kl', loss_weight=0.5),
        ],
    ),
)
# The paper's 1e-3 for the predictors, a hundredth of it for the rest. MMEngine
# has no schedule for a part of the model: what the official code holds still
# for the first 5 epochs is warmed up here. A predictor's norms and biases
# decay, too.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'score_predictor': dict(lr_mult=100.0)})
)
