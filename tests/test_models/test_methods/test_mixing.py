"""Mixed patches and merging: what they are equal to."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.routing.granularity import unpool
from mmdge.utils import UserError
from tests.small import deit, merging_vit, mixed_patch_vit, pictures

COARSE = dict(type='UniformRouter', share=(0.0, 1.0))


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size', [(64, 96), (72, 88)])
def test_all_coarse_is_the_half_size_image(size):
    mixed = mixed_patch_vit(routing=COARSE).eval()
    plain = deit(routing='finest').eval()
    plain.load_state_dict(mixed.state_dict(), strict=False)
    x = pictures(2, *size)
    (found,) = mixed(x)
    bottom, right = (-side % 16 for side in size)  # of a region
    (half,) = plain(F.avg_pool2d(F.pad(x, (0, right, 0, bottom)), 2))
    copied = unpool(half.permute(0, 2, 3, 1), 2, tuple(found.shape[2:]))
    assert_equal(found, copied.permute(0, 3, 1, 2))


@pytest.mark.parametrize('location', [0, 1])
def test_merging_what_is_alike_changes_nothing(location):
    """A mean of four equal tokens weighs four times in attention."""
    model = merging_vit(routing=COARSE, merging_loc=location).eval()
    torch.nn.init.zeros_(model.pos_embed)
    patch = torch.randn(2, 3, 4, 1, 5, 1, 8, 8)
    # (B, 3, Rh, 1, Rw, 1, 8, 8) -> (B, 3, Rh * 2 * 8, Rw * 2 * 8)
    x = patch.expand(-1, -1, -1, 2, -1, 2, -1, -1)
    x = x.permute(0, 1, 2, 3, 6, 4, 5, 7).reshape(2, 3, 64, 80)
    (found,) = model(x)
    with model.as_dense_twin():
        (expected,) = model(x)
    assert_equal(found, expected)


@pytest.mark.parametrize('build', [mixed_patch_vit, merging_vit])
def test_a_higher_price_is_cheaper(build):
    model, x = build().eval(), pictures(2, 96, 96)
    ratios = []
    for price in (-1e3, 0.0, 3.0, 1e3):
        model.router.price = price
        model(x)
        ratios.append(model.cost.ratio.mean().item())
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[1] > ratios[2] > ratios[3]


@pytest.mark.parametrize('build', [mixed_patch_vit, merging_vit])
def test_ratios_need_no_blocks_after_the_decision(build):
    model, x = build().eval(), pictures(2, 72, 96)
    model(x)
    expected = model.cost.ratio
    for block in model.blocks[model.location :]:
        block.forward = None
    assert model.ratios(x).equal(expected)


def test_decisions_that_need_a_gradient_are_refused():
    with pytest.raises(UserError, match="'learned' learns by gradient"):
        mixed_patch_vit(routing='learned')
    with pytest.raises(UserError, match='merging_loc=3 must be a block, 0 to'):
        merging_vit(merging_loc=3)
