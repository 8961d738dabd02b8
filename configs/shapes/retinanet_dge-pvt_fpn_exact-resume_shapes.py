_base_ = './retinanet_dge-pvt_fpn_shapes.py'

# Killed at any moment and resumed, it ends with the weights and metrics of a
# training that was not, bit for bit: see docs/training.md.
randomness = dict(seed=0, deterministic=True)
train_dataloader = dict(
    persistent_workers=False,
    worker_init_fn=dict(type='mmdge.seed_worker'),
)
