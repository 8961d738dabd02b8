"""Routed backbones in ONNX Runtime equal PyTorch's, in both forms."""

from functools import partial

import pytest
import torch

from mmdge.calibration import fix_shapes
from mmdge.utils import UserError
from tests import small

pytest.importorskip('onnxscript')
runtime = pytest.importorskip('onnxruntime')
FIRST = dict(out_indices=0)  # seconds count: one stage, or block
BUILDERS = {
    'pvt': partial(small.pvt, 'error', **FIRST),
    'swin': partial(small.swin, **FIRST),
    'queries': partial(small.swin, coarse_queries=True, **FIRST),
    'pvt_v2': partial(small.pvt_v2, **FIRST),
    'dpvt': partial(small.dpvt, **FIRST),
    'dinov2': partial(small.dinov2, 'variance', **FIRST),
    'convnext': partial(small.convnext, **FIRST),
    'mixed': partial(small.mixed_patch_vit, **FIRST),
    'merging': partial(small.merging_vit, out_indices=1),
}


def in_onnx_runtime(model, x):
    """The exported model, a function of images."""
    program = torch.onnx.export(
        torch.export.export(model, (x,), strict=False),
        dynamo=True,
        opset_version=20,
        verbose=False,
    )
    file = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(file)
    (images,) = session.get_inputs()
    return lambda x: session.run(None, {images.name: x.numpy()})


@pytest.mark.parametrize('form', ['constant', 'adaptive'])
@pytest.mark.parametrize('name', BUILDERS)
@torch.no_grad()
def test_equals_pytorch(name, form):
    model, x = BUILDERS[name]().eval(), small.pictures(4, 100, 76)
    num = 1
    if form == 'constant':
        fix_shapes(model, [x])
        num = 2
    exported = in_onnx_runtime(model, x[:num])  # no table was made before
    for images in (x[:num], x[-num:]):
        for ours, theirs in zip(model(images), exported(images), strict=True):
            torch.testing.assert_close(
                torch.from_numpy(theirs),
                ours,
                atol=1e-4 * ours.abs().max().clamp(min=1).item(),
                rtol=0,
            )


def test_a_batch_without_constant_shapes_is_refused():
    x = small.pictures(2, 64, 64)
    with pytest.raises(UserError, match='one image at a time, not for 2.*fix'):
        torch.export.export(small.pvt().eval(), (x,), strict=False)
