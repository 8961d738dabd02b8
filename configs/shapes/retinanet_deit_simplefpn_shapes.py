# The dense twin of retinanet_dge-deit_simplefpn_shapes.py
_base_ = [
    '../_base_/models/retinanet_deit_shapes.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes.py',
    '../_base_/det_runtime.py',
    '../_base_/import_mmdge.py',
]
