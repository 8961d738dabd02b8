"""Layers on packed and dense queries."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.layers import (
    DropPath,
    PatchEmbed,
    SpatialReductionAttention,
    resize_pos_embed,
)


@pytest.mark.parametrize('sr_ratio', [1, 2, 4])
@pytest.mark.parametrize('num_extra', [0, 1])
@pytest.mark.parametrize('lengths', [[5, 5], [1, 9], [30, 2]])
def test_packed_attention_is_each_images_own(sr_ratio, num_extra, lengths):
    attention = SpatialReductionAttention(12, 3, sr_ratio)
    x = torch.randn(2, num_extra + 35, 12)
    queries = torch.randn(sum(lengths), 12)
    packed = attention(queries, x, (5, 7), lengths).split(lengths)
    for i, part in enumerate(queries.split(lengths)):
        alone = attention(part[None], x[i : i + 1], (5, 7))[0]
        torch.testing.assert_close(packed[i], alone)


def test_attention_by_hand():
    attention = SpatialReductionAttention(4, 2)
    x = torch.randn(1, 6, 4)
    q, (k, v) = attention.q(x), attention.kv(x).chunk(2, -1)
    heads = []
    for h in (slice(0, 2), slice(2, 4)):
        weights = (q[..., h] @ k[..., h].mT / 2**0.5).softmax(-1)
        heads.append(weights @ v[..., h])
    expected = attention.proj(torch.cat(heads, -1))
    torch.testing.assert_close(attention(x, x, (2, 3)), expected)


def test_a_map_smaller_than_the_reduction_has_one_key():
    attention = SpatialReductionAttention(4, 2, sr_ratio=8)
    assert attention.reduced_size((3, 20)) == (1, 2)
    out = attention.reduce(torch.randn(2, 60, 4), (3, 20))
    assert out.shape == (2, 2, 4) and out.isfinite().all()


def test_heads_must_divide():
    with pytest.raises(ValueError, match='embed_dims=10 must be a multiple'):
        SpatialReductionAttention(10, 3)


def test_drop_path_drops_samples_whole_on_either_path():
    drop = DropPath(0.5)
    lengths = [3, 1, 4] * 50
    rows = drop(torch.ones(sum(lengths), 2), lengths).split(lengths)
    values = {part.unique().item() for part in rows}
    assert values == {0.0, 2.0}
    dense = drop(torch.ones(100, 3, 2))
    assert {part.unique().item() for part in dense} == {0.0, 2.0}
    assert drop.eval()(torch.ones(2, 3, 2)).unique().item() == 1


@pytest.mark.parametrize('value', [-0.1, 1.0])
def test_drop_path_probability(value):
    with pytest.raises(ValueError, match='drop_prob must be in'):
        DropPath(value)


@pytest.mark.parametrize(
    'size, expected', [((8, 12), (2, 3)), ((9, 15), (2, 3)), ((1, 3), (1, 1))]
)
def test_patch_embed_sizes(size, expected):
    embed = PatchEmbed(3, 8, 4)
    tokens, got = embed(torch.rand(2, 3, *size))
    assert got == expected
    assert tokens.shape == (2, expected[0] * expected[1], 8)
    assert embed.flops(got) == expected[0] * expected[1] * 8 * 3 * 16


def test_resize_pos_embed():
    pos = torch.randn(1, 12, 5)
    assert resize_pos_embed(pos, (3, 4), (3, 4)) is pos
    # Same area, other shape: it must be resized all the same.
    resized = resize_pos_embed(pos, (3, 4), (2, 6))
    image = pos.view(1, 3, 4, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(2, 6), mode='bilinear')
    torch.testing.assert_close(resized, expected.flatten(2).mT)
