# DeiT's augmentation at 256 x 256, which mmpretrain has for Swin; with
# repeated augmentation.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py'

train_dataloader = dict(
    batch_size=128,
    sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True),
)
val_evaluator = [dict(type='Accuracy', topk=(1, 5))]
test_evaluator = val_evaluator
