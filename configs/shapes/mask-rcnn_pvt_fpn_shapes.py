# The dense twin of mask-rcnn_dge-pvt_fpn_shapes.py
_base_ = [
    '../_base_/models/mask-rcnn_pvt_shapes.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/shapes.py',
    '../_base_/det_runtime.py',
    '../_base_/import_mmdge.py',
]
