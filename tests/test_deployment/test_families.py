"""Each family in ONNX Runtime, or the reason why not; DGE is beside this."""

import pytest
import torch

from mmdge.calibration import fix_shapes
from mmdge.utils import UserError
from tests import small

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
SIZE = 72, 56  # not divisible by regions, or strides


def outputs(model, images):
    with torch.no_grad():
        return [
            part
            for out in model(images)
            for part in (out if isinstance(out, (tuple, list)) else [out])
        ]


def exported(model, images):
    """A session of ONNX Runtime, and the operators of the graph."""
    with torch.no_grad():
        program = torch.onnx.export(model, (images,), verbose=False)
    graph = program.model_proto
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session, {node.op_type for node in graph.graph.node}


def check_equal(model, batches):
    """Export on the first batch; the operators."""
    session, operators = exported(model, batches[0])
    (name,) = [given.name for given in session.get_inputs()]
    for images in batches:
        expected = outputs(model, images)
        found = session.run(None, {name: images.numpy()})
        for one, right in zip(found, expected, strict=True):
            torch.testing.assert_close(
                torch.tensor(one), right, atol=1e-4, rtol=1e-4
            )
    return operators


@pytest.mark.parametrize(
    'build',
    [
        small.dynamic_vit,
        lambda: small.dynamic_lvvit(reactivate=True),
        lambda: small.dynamic_swin(out_indices=2),
        lambda: small.dynamic_convnext(out_indices=2),
        small.cf_vit,
        lambda: small.cf_lvvit(num_classes=5),
    ],
    ids=[
        *('DynamicViT', 'DynamicLVViT', 'DynamicSwin', 'DynamicConvNeXt'),
        *('CFViT', 'CFLVViT'),
    ],
)
def test_constant_shapes(build):
    model, images = build().eval(), small.pictures(4, *SIZE)
    fix_shapes(model, [images])
    operators = check_equal(model, images.split(2))
    assert len(set(model.cost.dynamic.tolist())) == 1
    assert 'NonZero' not in operators  # whose shape would not be constant


@pytest.mark.parametrize(
    'build',
    [
        lambda: small.dynamic_vit(amount='price', price=0.2),
        lambda: small.dynamic_convnext(out_indices=2),
    ],
    ids=['DynamicViT', 'DynamicConvNeXt'],
)
def test_as_many_rows_as_an_image_is_worth(build):
    images = small.pictures(3, *SIZE)[1:]  # with some padding
    assert 'NonZero' in check_equal(build().eval(), images.split(1))


@pytest.mark.parametrize(
    ('build', 'reason'),
    [
        (small.token_routing, 'each image finds its own way'),
        (lambda: small.cf_vit(num_classes=5, price=0.4), 'at a price of 0'),
    ],
    ids=['TokenRoutingPVT', 'CFViT'],
)
def test_those_that_cannot_be_exported_say_why(build, reason):
    model, images = build().eval(), small.pictures(1, 64, 64)
    with pytest.raises(UserError, match=f'constant shapes: .*{reason}'):
        fix_shapes(model, [images])
    with pytest.raises(UserError, match=f'be exported: .*{reason}'):
        torch.export.export(model, (images,))
