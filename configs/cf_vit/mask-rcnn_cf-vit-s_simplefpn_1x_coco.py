_base_ = '../dge/mask-rcnn_deit-s_simplefpn_1x_coco.py'

# From the same ImageNet weights as its dense twin. All regions are split at
# first. This is ours: nobody has published a recipe for dense tasks.
model = dict(backbone=dict(type='mmdge.CFViT', routing='attention'))
default_hooks = dict(
    cost=dict(budget=0.62, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
)
