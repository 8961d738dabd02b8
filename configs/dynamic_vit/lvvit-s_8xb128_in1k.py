# The dense twin, and teacher, of dynamic-lvvit-s_8xb128_in1k.py. Give it the
# official weights, made into a model's as in README.md: load_from=CHECKPOINT
_base_ = './deit-s_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdge.DynamicLVViT',
        arch='small',
        routing='finest',
        out_type='cls_token',
        drop_path_rate=0.0,
    ),
    # Of the cls token; LV-ViT's second head, of the patches, is left out.
    head=dict(type='LinearClsHead'),
)
load_from = None
