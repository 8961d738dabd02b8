# The paper's: 1024 images a step, lr = 5e-4 * 1024 / 512, mixed precision.
# (Its code keeps a moving average of the weights, but reports the weights.)
max_epochs = 300
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-8),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'cls_token': dict(decay_mult=0.0)},
    ),
)
cosine = dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True)
warmup = dict(
    type='LinearLR',
    start_factor=1e-3,
    by_epoch=True,
    convert_to_iter_based=True,
)
param_scheduler = [dict(warmup, end=5), dict(cosine, begin=5)]
dge_param_scheduler = [dict(warmup, end=20), dict(cosine, begin=20)]
auto_scale_lr = dict(base_batch_size=1024)
