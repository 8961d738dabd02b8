"""Tokens and their positions."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.layers import PatchEmbed, resize_pos_embed


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
