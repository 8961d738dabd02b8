# DSS's: 4096 images a step. The paper's 4e-3 is for what is new; what is
# trained already takes a fifth of it.
train_cfg = dict(by_epoch=True, max_epochs=120, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    accumulative_counts=4,
    optimizer=dict(type='AdamW', lr=8e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'gamma': dict(decay_mult=0.0)},
    ),
)
epochs = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, **epochs),
    dict(type='CosineAnnealingLR', eta_min_ratio=2.5e-4, begin=20, **epochs),
]
auto_scale_lr = dict(base_batch_size=4096)
