# What our own configs share, whatever the host.
default_hooks = dict(
    # A dynamic config says what it wants to spend: cost=dict(budget=0.5).
    # The metric of the FLOPs comes with the hook. With loss_weight=0.0 the log
    # holds the ratio against the budget, no more: routers with shares spend
    # those, and a loss would have no gradient.
    cost=dict(type='mmdge.CostHook', budget=1.0),
    granularity=dict(type='mmdge.GranularityVisHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmdge.SafeCheckpointHook', interval=1, max_keep_ckpts=3
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
