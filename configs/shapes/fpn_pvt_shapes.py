# The dense twin of fpn_dge-pvt_shapes.py
_base_ = [
    '../_base_/models/fpn_pvt_shapes.py',
    '../_base_/datasets/shapes_semantic.py',
    '../_base_/schedules/shapes.py',
    '../_base_/seg_runtime.py',
    '../_base_/import_mmdge.py',
]
