# Without the token labels of the paper, by the recipe of DeiT.
_base_ = './cf-deit-s_8xb128_in1k.py'

model = dict(backbone=dict(type='mmdge.CFLVViT'))
default_hooks = dict(cost=dict(budget=0.94))
optim_wrapper = dict(optimizer=dict(lr=1.6e-3))
