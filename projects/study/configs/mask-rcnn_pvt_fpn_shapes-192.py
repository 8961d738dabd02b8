# make_shapes.py --root data/shapes-192 --size 192 --num-train 1080
#     --num-val 300 --num-objects 1 5
_base_ = '../../../configs/shapes/mask-rcnn_pvt_fpn_shapes.py'

data_root = 'data/shapes-192/'
model = dict(backbone=dict(pretrain_img_size=192))
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='CocoMetric',
        ann_file=data_root + 'annotations/instances_val.json',
        metric=['bbox', 'segm'],
    ),
    dict(type='mmdge.BackboneFLOPs'),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=5, val_interval=5)
