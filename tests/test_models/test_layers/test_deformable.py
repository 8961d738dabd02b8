"""Attention to a few points: against plain loops; where rows stand."""

import math

import pytest
import torch
from torch import nn

from mmdge.models.layers.deformable import DeformableAttention, DeformableBlock
from mmdge.models.routing import Grains


def shaken(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def in_loops(attn, rows, values, centres, images):
    """Row by row, head by head, point by point, neighbour by neighbour."""
    outs, outside = [], 0
    for row, (x, y), image in zip(rows, centres.tolist(), images, strict=True):
        offsets, weights = attn.offsets(row), attn.weights(row)
        offsets.register_hook(lambda grad: 0.1 * grad)
        offsets = offsets.view(3, 4, 2)
        heads = torch.zeros(3, 2)
        for k in range(3):
            shares = weights[4 * k : 4 * k + 4].softmax(0)
            for p in range(4):
                px, py = x + offsets[k, p, 0], y + offsets[k, p, 1]
                left, top = math.floor(px.item()), math.floor(py.item())
                for j in (left, left + 1):
                    for i in (top, top + 1):
                        if not (0 <= j < 5 and 0 <= i < 4):
                            outside += 1
                            continue
                        near = (1 - (px - j).abs()) * (1 - (py - i).abs())
                        value = values[image, i, j, 2 * k : 2 * k + 2]
                        value = shares[p] * near * value
                        heads = heads + nn.functional.pad(
                            value[None], (0, 0, k, 2 - k)
                        )
        outs.append(attn.proj(heads.flatten()))
    assert 50 < outside < 16 * 3 * len(rows) - 50
    return torch.stack(outs)


def test_it_equals_plain_loops_and_so_do_its_gradients():
    attn = shaken(DeformableAttention(6, 3))
    tokens = torch.randn(2, 20, 6, requires_grad=True)
    rows = torch.randn(9, 6, requires_grad=True)
    # Corners, a border, and centres of patches.
    centres = torch.tensor([[0, 0], [4, 3], [4, 1.5], [2, 2], [1.5, 0.5]])
    centres = torch.cat([centres, centres[:4].flip(0)])
    block = DeformableBlock(6, 3, 6)
    block.attn = attn
    context = block.prepare(tokens, (4, 5)).context
    values = attn.v(context.normed).unflatten(1, (4, 5))
    loops = in_loops(attn, rows, values, centres, [0] * 7 + [1] * 2)
    found = attn(rows, context._replace(centres=centres), [7, 2])
    torch.testing.assert_close(found, loops)
    wanted = [tokens, rows, *attn.parameters()]
    grad = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, wanted, grad, retain_graph=True),
        torch.autograd.grad(loops, wanted, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('lengths', [[5, 5], [1, 9], [0, 7]])
def test_rows_of_a_batch_are_updated_as_each_images_own(lengths):
    block = shaken(DeformableBlock(12, 3, 24))
    x, rows = torch.randn(2, 35, 12), torch.randn(sum(lengths), 14)
    context = block.prepare(x, (5, 7)).context
    packed = block.update(rows, lengths, context).split(lengths)
    for i, part in enumerate(rows.split(lengths)):
        context = block.prepare(x[i : i + 1], (5, 7)).context
        alone = block.update(part, [len(part)], context)
        torch.testing.assert_close(packed[i], alone)


def test_points_begin_on_square_rings():
    bias = DeformableAttention(16, 8).offsets.bias.view(8, 4, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1)]
    directions += [(-x, -y) for x, y in directions]
    radii = torch.arange(1.0, 5.0)[:, None]
    for points, direction in zip(bias, directions, strict=True):
        torch.testing.assert_close(points, radii * torch.tensor(direction))
    # Five directions are no multiples of 45 degrees, but on the rings, too.
    attn = DeformableAttention(10, 5)
    points = attn.offsets.bias.view(5, 4, 2)
    torch.testing.assert_close(points.abs().amax(-1), radii[:, 0].expand(5, 4))
    angles = torch.atan2(points[..., 1], points[..., 0])[:, 3] / math.tau
    torch.testing.assert_close(angles % 1, torch.arange(5) / 5)
    assert not attn.offsets.weight.any()


def test_what_moves_in_the_image_moves_in_the_map():
    """But at the borders, which points look beyond."""
    block, size = DeformableBlock(8, 4, 16), (14, 16)
    nn.init.normal_(block.attn.weights.weight)
    x = torch.randn(1, *size, 8)
    moved = x.roll((2, 3), (1, 2))
    x, moved = (
        block(each.flatten(1, 2), size).view_as(x) for each in (x, moved)
    )
    found, expected = moved[:, 7:-5, 8:-5], x[:, 5:-7, 5:-8]
    torch.testing.assert_close(found, expected)
    assert not moved[:, 2:-5, 8:-5].allclose(x[:, :-7, 5:-8], atol=0.01)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_knows_where_a_patch_stands(dtype):
    """bfloat16 has no odd numbers above 256, and float16 none above 2048."""
    size = (3, 2201)
    block = DeformableBlock(8, 2, 8)
    x = torch.randn(1, 3 * 2201, 8)
    grains = Grains(size, (1, 3, 6))
    updates = {}
    for kind in (torch.float32, dtype):
        source, context = block.to(kind).prepare(x.to(kind), size)[1:]
        tokens, patches = grains.candidates(source)
        whole = patches[0, [0, 733, 734, -1], -2:].tolist()
        assert whole[0] == [1, 1] and whole[1] == [2199.5, 1]
        assert whole[2] == [2.5, 1] and whole[3] == [2198, 1]
        assert tokens[0, -2, -2:].tolist() == [2199, 2]
        rows = torch.cat([tokens, patches], 1)[0]
        updates[kind] = block.update(rows, [len(rows)], context)
        assert updates[kind].dtype == kind
    exact = updates[torch.float32]
    error = (updates[dtype] - exact).norm() / exact.norm()
    assert error < 0.02


def test_heads_divide_the_channels():
    with pytest.raises(ValueError, match='embed_dims=8 .* num_heads=3'):
        DeformableAttention(8, 3)
