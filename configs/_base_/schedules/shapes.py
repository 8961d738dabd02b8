# A few minutes on two CPU cores.
max_epochs = 6
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,  # to the end of the training
        convert_to_iter_based=True,
    ),
]
# Configs of version 0.1 refer to these.
shapes_dge_hooks = [
    dict(type='mmdge.CostHook', budget=0.5, loss_weight=0.0),
    dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
    dict(type='mmdge.GranularityVisHook'),
]
