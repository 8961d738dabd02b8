"""Small models of each host, and what they are tested on."""

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from tests.small import PVT, shaken
from tests.tool_runs import ROOT

CONFIGS = dict(
    retinanet='retinanet_dge-pvt_fpn_shapes',
    mask_rcnn='mask-rcnn_dge-pvt_fpn_shapes',
    fpn='fpn_dge-pvt_shapes',
    classifier='dge-pvt_shapes-crops',
    cf_vit='cf-vit_shapes-crops',
)
SIDE = 64


def options(name):
    """Entries of a config that make its model small."""
    if name == 'cf_vit':
        return {}
    chosen = {f'model.backbone.arch.{k}': v for k, v in PVT.items()}
    dims = list(PVT['embed_dims'])
    if name == 'classifier':
        chosen['model.head.in_channels'] = dims[-1]
    else:
        first = 1 if name == 'retinanet' else 0
        chosen['model.neck.in_channels'] = dims[first:]
    if name == 'mask_rcnn':
        chosen['model.test_cfg.rpn.max_per_img'] = 20
        chosen['model.test_cfg.rcnn.score_thr'] = 0.01
    if name == 'retinanet':
        chosen['model.test_cfg.score_thr'] = 0.01
    return chosen


def config(name, **more):
    cfg = Config.fromfile(ROOT / f'configs/shapes/{CONFIGS[name]}.py')
    cfg.merge_from_dict({**options(name), **more})
    return cfg


def build(name, routing='finest'):
    """A model whose blocks do something."""
    cfg = config(name)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    cfg.model.backbone.routing = routing
    model = MODELS.build(cfg.model)
    shaken(model.backbone)
    return model.eval()


def data(name, number=3):
    """A batch of random images, as the host's loader gives it."""
    shape = (3, SIDE, SIDE)
    if name in ('retinanet', 'mask_rcnn'):
        return demo_mm_inputs(number, [shape] * number, num_items=[1] * number)
    images = torch.randint(0, 256, (number, *shape)).to(torch.uint8)
    if name != 'fpn':
        return dict(inputs=images)
    meta = dict(img_shape=shape[1:], ori_shape=shape[1:], pad_shape=shape[1:])
    truth = PixelData(data=torch.zeros(1, *shape[1:]).long())
    sample = SegDataSample(metainfo=meta, gt_sem_seg=truth)
    return dict(inputs=list(images), data_samples=[sample.clone()] * number)


def answers(name, model, batch):
    """What a model predicts, as tensors, one tuple for each image."""
    torch.manual_seed(0)
    with torch.no_grad():
        samples = model.test_step(batch)
    if name == 'fpn':
        return [(sample.seg_logits.data,) for sample in samples]
    if name in ('classifier', 'cf_vit'):
        return [(sample.pred_score,) for sample in samples]
    fields = ('bboxes', 'scores', 'labels')
    fields += ('masks',) if name == 'mask_rcnn' else ()
    return [tuple(s.pred_instances[f] for f in fields) for s in samples]
