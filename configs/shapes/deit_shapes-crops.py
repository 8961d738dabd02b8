# The dense twin, and teacher, of dynamic-vit_shapes-crops.py
_base_ = [
    '../_base_/models/classifier_deit_shapes.py',
    '../_base_/datasets/shapes_classification.py',
    '../_base_/schedules/shapes.py',
    '../_base_/cls_runtime.py',
    '../_base_/import_mmdge.py',
]

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# One label per image teaches less than a map of them: slower.
optim_wrapper = dict(optimizer=dict(lr=5e-4))
