# For schedules that count iterations, as mmseg's do.
_base_ = './seg_runtime.py'

default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=4000),
)
log_processor = dict(by_epoch=False)
