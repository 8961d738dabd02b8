_base_ = '../dge/fpn_deit-s_8xb4-40k_ade20k-512x512.py'

# From the same ImageNet weights as its dense twin. All regions are split at
# first. This is ours: nobody has published a recipe for dense tasks.
model = dict(backbone=dict(type='mmdge.CFViT', routing='attention'))
default_hooks = dict(
    cost=dict(budget=0.76, loss_weight=0.0),
    warmup=dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
)
