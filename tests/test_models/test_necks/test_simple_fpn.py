"""SimpleFPN: strides, sizes, gradients, mistakes."""

import pytest
import torch

from mmdge.models import SimpleFPN


@pytest.mark.parametrize(
    'kwargs, strides',
    [
        (dict(), [4, 8, 16, 32, 64]),
        (dict(start_level=1), [8, 16, 32, 64, 128]),
        (dict(num_outs=4), [4, 8, 16, 32]),
        (dict(in_stride=8, start_level=1, num_outs=3), [8, 16, 32]),
        (dict(in_stride=4, start_level=3, num_outs=2), [32, 64]),
    ],
)
def test_strides(kwargs, strides):
    neck = SimpleFPN(24, 16, **kwargs)
    in_stride = kwargs.get('in_stride', 16)
    sides = 256 // in_stride, 128 // in_stride
    outs = neck([torch.rand(2, 24, *sides)])
    assert neck.strides == strides
    for out, stride in zip(outs, strides, strict=True):
        assert out.shape == (2, 16, 256 // stride, 128 // stride)
    sum(out.square().sum() for out in outs).backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize('sides', [(1, 1), (3, 5), (7, 2)])
def test_any_size(sides):
    outs = SimpleFPN(8, 8)([torch.rand(1, 8, *sides)])
    for out, scale in zip(outs, (4, 2, 1, 1 / 2, 1 / 4), strict=True):
        expected = tuple(-(-side * scale // 1) for side in sides)
        assert out.shape[2:] == expected
        assert out.isfinite().all()


def test_each_position_is_normed_by_itself():
    """A far corner changes nothing here, which batch or map norms would."""
    neck = SimpleFPN(8, 8, num_outs=3)
    x = torch.rand(1, 8, 12, 12)
    other = x.clone()
    other[..., -1, -1] += 10
    for a, b in zip(neck([x]), neck([other]), strict=True):
        corner = a.shape[-1] // 3
        assert a[..., :corner, :corner].equal(b[..., :corner, :corner])


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(in_stride=32), 'in_stride.*4, 8 or 16.*32'),
        (dict(start_level=4), 'start_level must be 0 to 3.*4'),
        (dict(num_outs=0), 'num_outs at least 1, but got 0 and 0'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SimpleFPN(8, 8, **kwargs)


def test_more_than_one_map_is_refused():
    x = torch.rand(1, 8, 4, 4)
    with pytest.raises(ValueError, match='one map, but got 2.*out_indices'):
        SimpleFPN(8, 8)([x, x])
