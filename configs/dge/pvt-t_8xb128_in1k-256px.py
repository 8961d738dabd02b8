_base_ = [
    '../_base_/models/classifier_pvt.py',
    '../_base_/datasets/imagenet_256px.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/cls_runtime.py',
    '../_base_/import_mmdge.py',
]
