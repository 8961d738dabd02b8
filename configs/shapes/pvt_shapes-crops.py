# The dense twin of dge-pvt_shapes-crops.py
_base_ = [
    '../_base_/models/classifier_pvt_shapes.py',
    '../_base_/datasets/shapes_classification.py',
    '../_base_/schedules/shapes.py',
    '../_base_/cls_runtime.py',
    '../_base_/import_mmdge.py',
]

# One label per image teaches less than a map of them: slower.
optim_wrapper = dict(optimizer=dict(lr=3e-4))
