"""Files for ONNX Runtime: what is in them, and what cannot be."""

import onnx
import pytest
import torch
from torch import nn

from mmdge.deployment import (
    Description,
    OnnxSession,
    RawOutputs,
    export_onnx,
    onnx_file,
)
from mmdge.utils import UserError
from tests.small import pictures, pvt
from tests.test_deployment.hosts import SIDE, build
from tests.test_deployment.test_raw_outputs import NAMES, told


def batches(batch, *sizes):
    return [pictures(batch, *size) for size in sizes]


def test_a_detector_in_onnx_runtime(tmp_path):
    model = build('retinanet')
    raw, path = RawOutputs(model), tmp_path / 'model.onnx'
    says = told(model, shares={'block1.0.router': [0.25, 0.75]})
    images = batches(2, (SIDE, SIDE), (SIDE, SIDE))
    assert export_onnx(raw, images, path, says) < 1e-4
    session = OnnxSession(path, threads=1)
    assert session.told == says
    assert session.names == NAMES['retinanet']
    (other,) = batches(2, (SIDE, SIDE))
    for one, right in zip(session(other), raw(other), strict=True):
        torch.testing.assert_close(one, right, atol=1e-4, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ['model.onnx']


def test_any_size_of_what_routes_nothing(tmp_path):
    model = nn.Module()
    model.backbone = pvt('finest', out_indices=(0,))
    raw = RawOutputs(model.eval(), 'backbone', with_flops=True)
    says = told(model, size=None, divisor=4, batch=1)
    images = batches(1, (48, 80), (SIDE, SIDE))
    export_onnx(raw, images, tmp_path / 'model.onnx', says)
    session = OnnxSession(tmp_path / 'model.onnx')
    (other,) = batches(1, (36, 96))
    with torch.no_grad():
        expected = raw(other)
    for one, right in zip(session(other), expected, strict=True):
        torch.testing.assert_close(one, right, atol=1e-4, rtol=1e-4)


class Odd(nn.Module):
    """Outputs in the manner of RawOutputs, from a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def named(self, images):
        return dict(out=self.function(images))

    def forward(self, images):
        return tuple(self.named(images).values())


def branch(images):
    return images if images.sum() > 0 else -images


@pytest.mark.parametrize(
    'function, message',
    [
        (torch.special.bessel_j0, 'no form of the operator .*bessel_j0'),
        (branch, 'torch.export cannot follow this model'),
    ],
)
def test_what_cannot_be_exported_is_named(function, message, tmp_path):
    says = told(nn.Identity(), batch=1)
    images = batches(1, (8, 8), (8, 8))
    with pytest.raises(UserError, match=message):
        export_onnx(Odd(function), images, tmp_path / 'out.onnx', says)
    assert not list(tmp_path.iterdir())


def test_no_file_where_outputs_differ(tmp_path):
    """As of what the exporter took for a constant."""
    calls = []

    def count(images):
        calls.append(1)
        return images + len(calls)

    says = told(nn.Identity(), batch=1)
    images = batches(1, (8, 8), (8, 8))
    with pytest.raises(UserError, match='differ by .* in the output out'):
        export_onnx(Odd(count), images, tmp_path / 'out.onnx', says)
    assert not list(tmp_path.iterdir())


def test_files_of_others(tmp_path):
    value = onnx.helper.make_tensor_value_info('images', 1, [1])
    other = onnx.helper.make_tensor_value_info('out', 1, [1])
    node = onnx.helper.make_node('Neg', ['images'], ['out'])
    graph = onnx.helper.make_graph([node], 'negative', [value], [other])
    opset = [onnx.helper.make_opsetid('', 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / 'other.onnx')
    (tmp_path / 'broken.onnx').write_text('nothing')
    for name, message in (
        ('missing', 'there is no file'),
        ('broken', 'ONNX Runtime cannot load'),
        ('other', 'does not say what it holds'),
    ):
        with pytest.raises(UserError, match=message):
            OnnxSession(tmp_path / f'{name}.onnx')


def test_packages_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"'mmdge\[deploy\]'"):
        export_onnx(Odd(torch.neg), [], tmp_path / 'o.onnx', None)


def test_a_description_there_and_back():
    says = told(nn.Identity(), size=None, flops=None)
    assert Description.of_metadata(says.as_metadata(), 'file') == says
