_base_ = './fpn_pvt-m_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(routing='variance'))
custom_hooks = {{_base_.dge_hooks}}  # budget 0.5: ../_base_/mmdge_runtime.py
