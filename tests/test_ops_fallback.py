"""Tests of the stand-in for mmcv's compiled ops."""

import importlib
import itertools
import math
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mmengine.hub import get_config
from mmengine.structures import InstanceData

from mmdge.ops_fallback import (
    install,
    nms,
    roi_align_backward,
    roi_align_forward,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
)

install()

ROOT = Path(__file__).resolve().parents[1]
# Load the file by itself: the package calls install() when imported.
LOAD_FILE = f'import sys\nsys.path.append({str(ROOT / "mmdge")!r})\n'
DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason='no CUDA device'
        ),
    ),
]
COMPILED = hasattr(importlib.import_module('mmcv._ext'), '__file__')
# A test of the substitute says nothing where mmcv has its own ops.
substitute_only = pytest.mark.skipif(COMPILED, reason='mmcv has compiled ops')


def skip_if_mmcv_lacks_it(device, reduced=True):
    if COMPILED and device == 'cpu' and reduced:
        pytest.skip("mmcv's compiled CPU ops lack float16 and bfloat16")


def run_python(code):
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', LOAD_FILE + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


# nms


def random_boxes(count, seed=0, size=20.0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 2, generator=generator) * size / 4
    extent = torch.rand(count, 2, generator=generator) * size
    scores = torch.randperm(count, generator=generator) / count
    return torch.cat((start, start + extent), dim=1), scores


def iou_by_hand(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    overlap = max(0.0, width) * max(0.0, height)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return overlap / (area_a + area_b - overlap)


def nms_by_hand(boxes, scores, threshold, offset):
    boxes, scores = boxes.tolist(), scores.tolist()
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(
            iou_by_hand(boxes[i], boxes[j], offset) <= threshold for j in kept
        ):
            kept.append(i)
    return kept


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.7])
def test_nms_equals_loop(device, offset, threshold):
    for seed in range(3):
        boxes, scores = random_boxes(60, seed)
        expected = nms_by_hand(boxes, scores, threshold, offset)
        kept = nms(boxes.to(device), scores.to(device), threshold, offset)
        assert 1 < len(expected) < 60
        assert kept.dtype == torch.int64
        assert kept.tolist() == expected


@pytest.mark.parametrize('device', DEVICES)
def test_nms_offset_changes_the_result(device):
    # Widths 2 and 2 overlapping by 1: IoU 1/3; by mmcv's offset 2 of 4: 1/2.
    boxes = torch.tensor([[0.0, 0, 2, 0], [1, 0, 3, 0]], device=device)
    boxes[:, 3] = 1
    scores = torch.tensor([0.1, 0.9], device=device)
    assert nms(boxes, scores, 0.4, 0).tolist() == [1, 0]
    assert nms(boxes, scores, 0.4, 1).tolist() == [1]
    # A point overlaps itself only with an offset.
    points = torch.zeros(2, 4, device=device)
    assert nms(points, scores, 0.4, 0).tolist() == [1, 0]
    assert nms(points, scores, 0.4, 1).tolist() == [1]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('second', 'threshold'),
    [
        ([0.0, 0, 5, 10], 0.5),
        # float32(0.6) > 0.6: kept only if compared in float32, as by mmcv.
        ([0.0, 0, 6, 10], 0.6),
        ([0.0, 0, 7, 10], 0.7),
    ],
)
def test_nms_keeps_iou_equal_to_threshold(device, second, threshold):
    boxes = torch.tensor([[0.0, 0, 10, 10], second], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert nms(boxes, scores, threshold, 0).tolist() == [0, 1]
    assert nms(boxes, scores, threshold - 1e-3, 0).tolist() == [0]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_without_boxes(device, offset):
    boxes = torch.zeros(0, 4, device=device)
    kept = nms(boxes, boxes[:, 0], 0.5, offset)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_reduced_precision(device, dtype):
    boxes, scores = random_boxes(30)
    boxes, scores = boxes.to(dtype), (scores * 30).to(dtype)
    expected = nms_by_hand(boxes.float(), scores.float(), 0.5, 1)
    kept = nms(boxes.to(device), scores.to(device), 0.5, 1)
    assert kept.tolist() == expected


@pytest.mark.parametrize('device', DEVICES)
def test_batched_nms_of_mmcv(device):
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(80)
    groups = torch.arange(80) % 3
    expected = []
    for group in range(3):
        members = (groups == group).nonzero()[:, 0]
        kept = nms_by_hand(boxes[members], scores[members], 0.3, 0)
        expected += members[kept].tolist()
    expected.sort(key=lambda i: -scores[i])

    config = {'type': 'nms', 'iou_threshold': 0.3}
    for extra in ({}, {'split_thr': 10}):
        dets, kept = batched_nms(
            boxes.to(device),
            scores.to(device),
            groups.to(device),
            {**config, **extra},
        )
        assert kept.tolist() == expected
        torch.testing.assert_close(dets[:, :4].cpu(), boxes[expected])
        torch.testing.assert_close(dets[:, 4].cpu(), scores[expected])


# roi_align


def sample_by_hand(plane, y, x):
    """Interpolate (C, H, W) at a point; the outermost pixels extend by 1."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.shape[0])
    y = min(max(y, 0.0), height - 1.0)
    x = min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    return (
        plane[:, top, left] * (1 - fy) * (1 - fx)
        + plane[:, top, right] * (1 - fy) * fx
        + plane[:, bottom, left] * fy * (1 - fx)
        + plane[:, bottom, right] * fy * fx
    )


def roi_align_by_hand(features, rois, size, scale, ratio, aligned):
    """Average samples on a regular grid in each bin, by plain loops."""
    rows, columns = size
    shift = 0.5 if aligned else 0.0
    result = []
    for batch, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / rows, width / columns
        grid_h = ratio if ratio > 0 else math.ceil(bin_h)
        grid_w = ratio if ratio > 0 else math.ceil(bin_w)
        for row, column in itertools.product(range(rows), range(columns)):
            total = features.new_zeros(features.shape[1])
            for i, j in itertools.product(range(grid_h), range(grid_w)):
                y = y1 + (row + (i + 0.5) / grid_h) * bin_h
                x = x1 + (column + (j + 0.5) / grid_w) * bin_w
                total = total + sample_by_hand(features[int(batch)], y, x)
            result.append(total / max(grid_h * grid_w, 1))
    stacked = torch.stack(result).view(len(rois), rows, columns, -1)
    return stacked.permute(0, 3, 1, 2)


def roi_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 9, generator=generator, dtype=dtype)
    rois = torch.tensor(
        [
            [0, 1.3, 2.1, 13.7, 11.9],  # inside
            [1, 4.2, 4.4, 4.9, 5.1],  # less than one feature pixel
            [1, -6.5, -7.5, 5.5, 30.5],  # partly outside
            [0, 50.0, 50.0, 60.0, 60.0],  # outside
            [1, 3.0, 3.0, 3.0, 3.0],  # empty
        ],
        dtype=dtype,
    )
    return features, rois


ROI_CASES = pytest.mark.parametrize(
    ('aligned', 'ratio'), list(itertools.product([True, False], [0, 2]))
)


@pytest.mark.parametrize('device', DEVICES)
@ROI_CASES
@pytest.mark.parametrize('scale', [0.5, 1.0])
def test_roi_align_equals_loop(device, aligned, ratio, scale):
    features, rois = roi_inputs()
    features.requires_grad_()
    expected = roi_align_by_hand(features, rois, (2, 3), scale, ratio, aligned)
    weights = torch.randn(expected.shape, dtype=expected.dtype)
    (expected_grad,) = torch.autograd.grad(expected, features, weights)

    options = {
        'aligned_height': 2,
        'aligned_width': 3,
        'spatial_scale': scale,
        'sampling_ratio': ratio,
        'pool_mode': 1,
        'aligned': aligned,
    }
    features, rois = features.detach().to(device), rois.to(device)
    output = torch.full_like(expected, math.nan, device=device)
    none = features.new_zeros(0)
    roi_align_forward(features, rois, output, none, none, **options)
    torch.testing.assert_close(output.cpu(), expected.detach())

    # mmcv's kernel adds to what is there.
    grad = torch.ones_like(features)
    roi_align_backward(weights.to(device), rois, none, none, grad, **options)
    torch.testing.assert_close(grad.cpu() - 1, expected_grad)


@pytest.mark.parametrize('device', DEVICES)
@ROI_CASES
def test_roi_align_of_mmcv(device, aligned, ratio):
    from mmcv.ops import RoIAlign, roi_align

    features, rois = roi_inputs()
    expected = roi_align_by_hand(features, rois, (3, 2), 0.5, ratio, aligned)
    features, rois = features.to(device).requires_grad_(), rois.to(device)
    layer = RoIAlign((3, 2), 0.5, ratio, aligned=aligned)
    torch.testing.assert_close(layer(features, rois).cpu(), expected)
    assert torch.autograd.gradcheck(
        # The gradient on CUDA is summed in no fixed order.
        lambda x: roi_align(x, rois, (3, 2), 0.5, ratio, 'avg', aligned),
        (features,),
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_roi_align_reduced_precision(device, dtype, autocast):
    from mmcv.ops import roi_align

    skip_if_mmcv_lacks_it(device)
    features, rois = roi_inputs(torch.float32)
    features, rois = features.to(dtype), rois.to(dtype)
    exact = features.float().requires_grad_()
    expected = roi_align_by_hand(exact, rois, (2, 2), 0.5, 2, True)
    expected.sum().backward()

    features = features.to(device).requires_grad_()
    with torch.autocast(device, dtype, enabled=autocast):
        output = roi_align(features, rois.to(device), (2, 2), 0.5, 2)
        output.sum().backward()
    assert output.dtype == features.grad.dtype == dtype
    tolerance = {'rtol': 2 * torch.finfo(dtype).eps, 'atol': 1e-4}
    torch.testing.assert_close(
        output.detach().float().cpu(), expected.detach(), **tolerance
    )
    torch.testing.assert_close(
        features.grad.float().cpu(), exact.grad, **tolerance
    )


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_without_rois(device):
    from mmcv.ops import roi_align

    features = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    output = roi_align(features, features.new_zeros(0, 5), (2, 2))
    output.sum().backward()
    assert output.shape == (0, 3, 2, 2)
    assert not features.grad.any()


@substitute_only
def test_roi_align_max_pooling_is_refused():
    from mmcv.ops import RoIAlign

    features, rois = roi_inputs()
    layer = RoIAlign((2, 2), pool_mode='max')
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        layer(features, rois)
    none = features.new_zeros(0)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        roi_align_backward(
            none, rois, none, none, features, 2, 2, 1.0, 0, 0, True
        )


# sigmoid_focal_loss


def focal_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, generator=generator, dtype=dtype) * 3
    return logits, torch.arange(20) % 5  # 4 is the background


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.75)]
)
def test_focal_loss_equals_torchvision(device, gamma, alpha):
    logits, labels = focal_inputs()
    one_hot = torch.nn.functional.one_hot(labels, 5)[:, :4].to(logits)
    logits.requires_grad_()
    expected = torchvision.ops.sigmoid_focal_loss(
        logits, one_hot, alpha, gamma
    )
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)

    logits, labels = logits.detach().to(device), labels.to(device)
    none = logits.new_empty(0)
    output = torch.full_like(logits, math.nan)
    sigmoid_focal_loss_forward(
        logits, labels, none, output, gamma=gamma, alpha=alpha
    )
    torch.testing.assert_close(output.cpu(), expected.detach())
    grad = torch.full_like(logits, math.nan)
    sigmoid_focal_loss_backward(
        logits, labels, none, grad, gamma=gamma, alpha=alpha
    )
    torch.testing.assert_close(grad.cpu(), expected_grad)


@substitute_only
@pytest.mark.parametrize('device', DEVICES)
def test_focal_loss_class_weight(device):
    from mmcv.ops import sigmoid_focal_loss

    logits, labels = focal_inputs()
    logits = logits[labels < 4].to(device).requires_grad_()
    labels = labels[labels < 4].to(device)
    weight = torch.tensor([1.0, 2, 0, 3], device=device).to(logits)
    plain = sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, 'none')
    loss = sigmoid_focal_loss(logits, labels, 2.0, 0.25, weight, 'none')
    torch.testing.assert_close(loss, plain * weight[labels][:, None])
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, labels, 2.0, 0.25, weight, 'mean'),
        (logits,),
    )


@substitute_only
def test_focal_loss_weight_of_no_class():
    logits, labels = focal_inputs()
    with pytest.raises(IndexError):
        sigmoid_focal_loss_forward(
            logits, labels, torch.ones(4), torch.empty(20, 4), 2.0, 0.25
        )


@pytest.mark.parametrize('device', DEVICES)
def test_focal_loss_extreme_logits(device):
    logits = torch.tensor([[500.0, -500.0]] * 2, device=device)
    labels = torch.tensor([0, 1], device=device)
    output, grad = torch.empty_like(logits), torch.empty_like(logits)
    arguments = logits, labels, logits.new_empty(0)
    sigmoid_focal_loss_forward(*arguments, output, gamma=2.0, alpha=0.25)
    sigmoid_focal_loss_backward(*arguments, grad, gamma=2.0, alpha=0.25)
    # mmcv bounds the logarithm at that of the least normal float32.
    bound = -math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(
        output.cpu(), torch.tensor([[0, 0], [0.75 * bound, 0.25 * bound]])
    )
    torch.testing.assert_close(
        grad.cpu(), torch.tensor([[0, 0], [0.75, -0.25]])
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_reduced_precision(device, dtype):
    logits, labels = focal_inputs(dtype)
    logits, labels = logits.to(device), labels.to(device)
    none = logits.new_empty(0)
    output, exact = torch.empty_like(logits), logits.new_empty(20, 4).float()
    sigmoid_focal_loss_forward(logits, labels, none, output, 2.0, 0.25)
    sigmoid_focal_loss_forward(
        logits.float(), labels, none.float(), exact, 2.0, 0.25
    )
    torch.testing.assert_close(output, exact.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize('device', DEVICES)
def test_focal_loss_of_mmdet(device):
    from mmdet.models.losses import FocalLoss

    logits, labels = focal_inputs(torch.float32)
    one_hot = torch.nn.functional.one_hot(labels, 5)[:, :4].float()
    expected = torchvision.ops.sigmoid_focal_loss(
        logits, one_hot, 0.25, 2.0, 'sum'
    )
    loss = FocalLoss()(logits.to(device), labels.to(device), avg_factor=1)
    torch.testing.assert_close(loss.cpu(), expected)


# The module


@substitute_only
def test_unknown_op_raises_only_when_called():
    from mmcv import _ext

    op = _ext.deform_conv_forward
    with pytest.raises(NotImplementedError, match='deform_conv_forward'):
        op(1, key=2)
    with pytest.raises(NotImplementedError, match='MMCV_WITH_OPS=1'):
        op()


@substitute_only
def test_substitute_is_a_module():
    import importlib.util

    import mmcv
    from mmcv.utils import collect_env
    from mmcv.utils.ext_loader import load_ext

    ext = load_ext('_ext', ['nms', 'softnms'])
    assert ext is sys.modules['mmcv._ext'] is mmcv._ext
    assert ext.__spec__ is importlib.util.find_spec('mmcv._ext')
    for name in ('__path__', '__file__', '__wrapped__', '_private'):
        assert not hasattr(ext, name)
    # What mmcv reports without ops.
    assert collect_env()['MMCV Compiler'] == 'n/a'


@substitute_only
def test_install_once():
    ext = sys.modules['mmcv._ext']
    assert install() is False
    assert sys.modules['mmcv._ext'] is ext


@substitute_only
def test_install_logs_once():
    code = (
        'from ops_fallback import install\n'
        'print([install(), install()])\n'
        'from mmcv.ops import RoIAlign, batched_nms, nms, roi_align\n'
    )
    output = run_python('sys.stderr = sys.stdout\n' + code)
    assert '[True, False]' in output
    assert output.count('mmcv has no compiled ops') == 1


@substitute_only
@pytest.mark.skipif(
    # onedl's is named onedl-mmdetection.
    'mmdet' in packages_distributions().get('mmdet', ()),
    reason="open-mmlab's own mmdet cannot be imported without mmcv.ops",
)
def test_mmdet_imported_first():
    output = run_python(
        'from mmdet.structures import DetDataSample\n'
        'from mmdet.structures.mask import structures\n'
        'assert structures.roi_align.__module__ == structures.__name__\n'
        'from ops_fallback import install\n'
        'assert install()\n'
        'from mmcv.ops import roi_align\n'
        'assert structures.roi_align == roi_align\n'
        'import numpy as np, torch\n'
        'masks = structures.BitmapMasks(np.ones((1, 8, 8), np.uint8), 8, 8)\n'
        'boxes = np.array([[0, 0, 8, 8]], np.float32)\n'
        'crop = masks.crop_and_resize(boxes, (4, 4), np.array([0]))\n'
        'print(crop.masks.sum())\n'
    )
    assert output.split()[-1] == '16'


def test_importable_ext_is_left_alone(tmp_path):
    # Any module that the import system finds as mmcv._ext counts as mmcv's
    # own; a Python file on the package's path is found as a compiled one is.
    (tmp_path / '_ext.py').write_text('loaded = True\n')
    output = run_python(
        'import mmcv\n'
        f'mmcv.__path__.insert(0, {str(tmp_path)!r})\n'
        'from ops_fallback import install\n'
        'print(install(), "mmcv._ext" in sys.modules)\n'
        'import mmcv._ext\n'
        'print(install(), mmcv._ext.loaded)\n'
    )
    assert output.split() == ['False', 'False', 'False', 'True']


# Detectors of mmdet


def tiny_detector(name):
    """Build a detector of mmdet's model zoo with few channels."""
    from mmdet.registry import MODELS

    model = get_config(f'mmdet::_base_/models/{name}.py').model
    model.backbone.update(
        depth=18, base_channels=8, frozen_stages=-1, init_cfg=None
    )
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    if name.startswith('retinanet'):
        model.bbox_head.update(num_classes=3, in_channels=8, feat_channels=8)
    else:
        model.rpn_head.update(in_channels=8, feat_channels=8)
        heads = model.roi_head
        heads.bbox_roi_extractor.out_channels = 8
        heads.mask_roi_extractor.out_channels = 8
        heads.bbox_head.update(
            in_channels=8, fc_out_channels=16, num_classes=3
        )
        heads.mask_head.update(
            in_channels=8, conv_out_channels=8, num_classes=3
        )
        model.test_cfg.rcnn.score_thr = 0.0
    model.test_cfg.max_per_img = 100
    model.test_cfg.score_thr = 0.0
    # mmengine builds the data preprocessor, and has to look in mmdet.
    return MODELS.build({**model, '_scope_': 'mmdet'})


def one_sample():
    """One image with two objects."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = np.zeros((2, 64, 64), np.uint8)
    masks[0, 4:30, 4:40] = 1
    masks[1, 20:60, 30:60] = 1
    boxes = torch.tensor([[4.0, 4, 40, 30], [30, 20, 60, 60]])
    sample = DetDataSample(
        gt_instances=InstanceData(
            bboxes=boxes,
            labels=torch.tensor([0, 2]),
            masks=BitmapMasks(masks, 64, 64),
        ),
        metainfo={
            'img_shape': (64, 64),
            'ori_shape': (64, 64),
            'scale_factor': (1.0, 1.0),
        },
    )
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(
        0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8
    )
    return {'inputs': [image], 'data_samples': [sample]}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('name', ['mask-rcnn_r50_fpn', 'retinanet_r50_fpn'])
def test_detector(name, autocast, device):
    skip_if_mmcv_lacks_it(device, reduced=autocast)
    torch.manual_seed(0)
    model = tiny_detector(name).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        data = model.data_preprocessor(one_sample(), training=True)
        losses = model(**data, mode='loss')
        total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert ('loss_mask' in losses) == name.startswith('mask')
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)

    model.eval()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        (result,) = model.test_step(one_sample())
    found = result.pred_instances
    assert 0 < len(found) <= 100
    assert found.bboxes.shape == (len(found), 4)
    # batched_nms of mmcv shifts boxes by their class. In bfloat16 it rounds
    # them, so that only class 0, which stays, is suppressed by the exact IoU.
    for label in range(1 if autocast else 3):
        boxes = found.bboxes[found.labels == label].float()
        iou = torchvision.ops.box_iou(boxes, boxes)
        assert (iou.triu(1) <= 0.5 + 1e-3).all()
    if name.startswith('mask'):
        assert found.masks.shape == (len(found), 64, 64)
