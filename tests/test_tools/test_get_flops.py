"""What a prediction runs is counted, of every host and head.

Counts of a trained model on real images are in test_end_to_end.py.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmdge import DGEPVT
from mmdge.utils import UserError
from mmdge.utils.counting import flop_counter
from tests.forked import forked
from tests.tool_runs import ROOT, SHAPES, functions_of

TOOL = 'tools/analysis_tools/get_flops.py'
DIMS = (16, 32, 64, 64)
ARCH = dict(embed_dims=DIMS, num_layers=(1,) * 4, num_heads=(1, 2, 4, 4))


@pytest.fixture(scope='module')
def script():
    return functions_of(TOOL)


def config_of(host, name, indices=(0, 1, 2, 3)):
    """The model of a host's own config, upon a small dynamic backbone."""
    init_default_scope(host)
    package = Path(importlib.util.find_spec(host).origin).parent
    cfg = Config.fromfile(package / '.mim/configs' / f'{name}.py').model
    cfg.pop('pretrained', None)
    cfg.backbone = dict(
        type='mmdge.DGEPVT',
        arch=ARCH,
        routing='variance',
        pretrain_img_size=64,
        out_indices=indices,
    )
    dims = [DIMS[index] for index in indices]
    if cfg.get('neck'):
        cfg.neck.in_channels = dims
    return cfg, dims


def boxes(size=64):
    return demo_mm_inputs(1, [(3, size, size)], num_items=[2])


def pixels(size=64):
    shape = (size, size)
    sample = SegDataSample(
        metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape),
        gt_sem_seg=PixelData(data=torch.zeros(1, *shape, dtype=torch.long)),
    )
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def counted(script, cfg, data):
    """Parts of a prediction, and what PyTorch's counter saw in it."""
    torch.manual_seed(0)
    model = MODELS.build(cfg).eval()
    counts = script.count(model, [data], 1)
    with torch.no_grad(), flop_counter() as counter:
        model.test_step(data)
    parts = {name: values[0] for name, values in counts.parts.items()}
    assert sum(parts.values()) == counter.get_total_flops() / 2
    assert min(parts.values()) >= 0 < parts['backbone'] < counts.dense[0]
    return model, counts, parts


@pytest.mark.parametrize(
    'name',
    [
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
    ],
)
def test_the_second_stage_takes_what_is_found(script, name):
    """Not all proposals go through the heads of masks."""
    cfg, _ = config_of('mmdet', name)
    cfg.test_cfg.rcnn.score_thr = 1.0  # nothing is
    cfg.test_cfg.rpn.max_per_img = 20
    model, _, parts = counted(script, cfg, boxes())
    masks = []
    heads = model.roi_head.mask_head
    heads = heads if isinstance(heads, torch.nn.ModuleList) else [heads]
    for head in heads:
        head.register_forward_hook(lambda *_: masks.append(1))
    assert len(model.test_step(boxes())[0].pred_instances) == 0
    assert not masks and parts['neck'] > 0 and parts['head'] > 0


def test_attention_in_the_heads(script):
    """Whose parameters need a gradient, below a counter that follows them."""
    cfg, _ = config_of(
        'mmdet',
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        (1, 2, 3),
    )
    cfg.num_queries = 10
    cfg.encoder.num_layers = cfg.decoder.num_layers = 1
    cfg.test_cfg.max_per_img = 10
    _, _, parts = counted(script, cfg, boxes())
    assert parts['neck'] > 0 and parts['head'] > 0


def test_a_head_without_a_forward_of_its_own(script):
    cfg, dims = config_of(
        'mmseg', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512'
    )
    cfg.data_preprocessor.size = (64, 64)
    head = cfg.decode_head
    head.in_channels = head.pixel_decoder.in_channels = dims
    head.pixel_decoder.encoder.num_layers = 1
    head.num_queries = 10
    head.transformer_decoder.num_layers = 3
    _, _, parts = counted(script, cfg, pixels())
    assert parts['head'] > 0


def test_sliding_windows_are_added_up(script):
    cfg = Config.fromfile(ROOT / SHAPES['mmseg']).model
    cfg.backbone.arch = ARCH
    cfg.neck.in_channels = list(DIMS)
    init_default_scope('mmseg')
    cfg.test_cfg = dict(mode='whole')
    _, whole, _ = counted(script, cfg, pixels())
    cfg.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    _, slid, _ = counted(script, cfg, pixels(96))
    assert slid.dense[0] == 4 * whole.dense[0]
    assert sum(dense for _, dense in slid.stages[0]) <= slid.dense[0]
    assert len(slid.stages[0]) == len(whole.stages[0]) == 4


def test_of_two_backbones_those_that_run(script):
    cfg = Config.fromfile(ROOT / SHAPES['mmdet']).model
    cfg.backbone.arch = ARCH
    cfg.neck.in_channels = list(DIMS[1:])
    init_default_scope('mmdet')
    _, alone, parts = counted(script, cfg, boxes())
    both = dict(
        type='SemiBaseDetector',
        detector=cfg,
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor',
            data_preprocessor=cfg.data_preprocessor,
        ),
        semi_train_cfg=dict(freeze_teacher=True),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    _, found, found_parts = counted(script, both, boxes())
    assert found.dense == alone.dense and len(found.stages[0]) == 4
    assert found_parts['neck'] == parts['neck'] > 0


class Features(BaseModel):
    """As those that learn without labels, it has no predictions."""

    def __init__(self):
        super().__init__()
        self.backbone = DGEPVT(ARCH, routing='variance')

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode != 'tensor':
            raise RuntimeError(f'Invalid mode "{mode}".')
        return self.backbone(inputs)


def test_a_model_without_predictions(script):
    data = dict(inputs=torch.rand(1, 3, 64, 64))
    counts = script.count(Features().eval(), [data], 1)
    assert 0 < counts.parts['backbone'][0] < counts.dense[0]


def test_a_static_model_is_named(script):
    class Static(Features):
        def __init__(self):
            BaseModel.__init__(self)
            self.backbone = torch.nn.Conv2d(3, 3, 1)

    data = dict(inputs=torch.rand(1, 3, 64, 64))
    with pytest.raises(UserError, match='needs a dynamic backbone'):
        script.count(Static(), [data], 1)


def test_it_takes_no_options_of_a_run():
    out = forked(
        TOOL, 'config.py', '--work-dir=w', '--launcher=none', expect=2
    )
    assert 'unrecognized arguments: --work-dir=w --launcher=none' in out
