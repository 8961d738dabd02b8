"""Pooling, packing and their inverses, against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.models.routing import (
    WithGate,
    candidate_gates,
    candidates,
    coarser,
    content_regions,
    own_tokens,
    pack,
    plan_packing,
    pool,
    query_counts,
    region_variance,
    unpack,
    unpool,
    update_errors,
)

SETS = [(1,), (1, 2), (1, 2, 4), (2, 4), (1, 2, 4, 8)]
sizes = st.tuples(st.integers(1, 19), st.integers(1, 19))


def pool_loop(x, side):
    height, width = x.shape[1:3]
    rows = [
        torch.stack(
            [
                x[:, i : i + side, j : j + side].flatten(1, 2).mean(1)
                for j in range(0, width, side)
            ],
            1,
        )
        for i in range(0, height, side)
    ]
    return torch.stack(rows, 1)


def random_choice(size, granularities, batch_size=3):
    region = granularities[-1]
    grid = [math.ceil(n / region) for n in size]
    return torch.randint(len(granularities), (batch_size, *grid))


def pack_map(x, size, granularities, packing):
    return pack(
        own_tokens(x, size, granularities),
        coarser(x, size, granularities),
        packing,
    )


@given(size=sizes, side=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_pool_is_the_mean_of_what_is_there(size, side):
    x = torch.randn(2, *size, 3)
    torch.testing.assert_close(pool(x, side), pool_loop(x, side))


@given(size=sizes, side=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_pool_inverts_unpool(size, side):
    grid = [math.ceil(n / side) for n in size]
    y = torch.randn(2, *grid, 3)
    x = unpool(y, side, size)
    assert x.shape == (2, *size, 3)
    torch.testing.assert_close(pool(x, side), y)


@given(size=sizes, region=st.sampled_from([2, 4]))
@settings(max_examples=40, deadline=None)
def test_region_variance_is_the_variance_inside(size, region):
    x = torch.randn(2, *size, 5) + 3
    for i in range(0, size[0], region):
        for j in range(0, size[1], region):
            inside = x[:, i : i + region, j : j + region].flatten(1, 2)
            torch.testing.assert_close(
                region_variance(x, region)[:, i // region, j // region],
                inside.var(1, correction=0).mean(-1),
                rtol=1e-4,
                atol=1e-5,
            )


@given(
    size=sizes,
    granularities=st.sampled_from([*SETS, (1, 2, 3, 6), (2, 3, 6)]),
    num_extra=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_candidates_are_the_map_pooled_at_each(size, granularities, num_extra):
    x = torch.randn(2, num_extra + math.prod(size), 3)
    grid = x[:, num_extra:].unflatten(1, size)
    pooled = [pool_loop(grid, side).flatten(1, 2) for side in granularities]
    expected = torch.cat([x[:, :num_extra], *pooled], dim=1)
    torch.testing.assert_close(candidates(x, size, granularities), expected)


@given(size=sizes, granularities=st.sampled_from(SETS))
@settings(max_examples=60, deadline=None)
def test_query_counts_are_the_rows_that_pack_keeps(size, granularities):
    counts = query_counts(size, granularities)
    choice = random_choice(size, granularities)
    packing = plan_packing(choice, size, granularities, num_extra=1)
    expected = counts.expand(3, -1, -1, -1).gather(-1, choice[..., None])
    assert packing.lengths == (expected.flatten(1).sum(1) + 1).tolist()
    assert sum(packing.pieces) == sum(packing.lengths)
    assert packing.counts.tolist() == packing.lengths
    kept = [len(packing.tokens), len(packing.patches)]
    assert kept == [sum(packing.pieces[::2]), sum(packing.pieces[1::2])]
    for k, side in enumerate(granularities):
        grid = math.prod(math.ceil(n / side) for n in size)
        assert counts[..., k].sum() == grid


@given(
    size=sizes,
    granularities=st.sampled_from(SETS),
    num_extra=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_unpack_inverts_pack(size, granularities, num_extra):
    choice = random_choice(size, granularities)
    packing = plan_packing(choice, size, granularities, num_extra)
    y = torch.randn(sum(packing.lengths), 4)
    tokens = unpack(y, packing)
    assert tokens.shape == (3, num_extra + math.prod(size), 4)
    packed = pack_map(tokens, size, granularities, packing)
    torch.testing.assert_close(packed, y)


@given(
    size=sizes,
    granularities=st.sampled_from(SETS),
    num_extra=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_gates_choose_and_get_their_gradient(size, granularities, num_extra):
    """Against all candidates, un-pooled, times their gates, added up."""
    choice = random_choice(size, granularities)
    x = torch.randn(3, num_extra + math.prod(size), 4).double()
    updates = candidates(x, size, granularities).sin()
    gate = torch.nn.functional.one_hot(choice, len(granularities)).double()
    gate.requires_grad_()
    gates = candidate_gates(gate, size, granularities, num_extra)
    grids = [[math.ceil(n / side) for n in size] for side in granularities]
    extra, *gated = (updates * gates[..., None]).split(
        [num_extra, *map(math.prod, grids)], dim=1
    )
    total = sum(
        unpool(patches.unflatten(1, grid), side, size).flatten(1, 2)
        for patches, grid, side in zip(
            gated, grids, granularities, strict=True
        )
    )
    total = torch.cat([extra, total], dim=1)

    packing = plan_packing(choice, size, granularities, num_extra)
    num_own = own_tokens(x, size, granularities).shape[1]
    packed = pack(*updates.tensor_split([num_own], dim=1), packing)
    tokens = unpack(packed, packing)
    torch.testing.assert_close(tokens, total)

    weights = torch.randn_like(total)
    (expected,) = torch.autograd.grad((total * weights).sum(), gate)
    tokens = WithGate.apply(tokens, gate, updates, size, granularities)
    (gradient,) = torch.autograd.grad((tokens * weights).sum(), gate)
    torch.testing.assert_close(gradient, expected)


@given(
    size=sizes,
    granularities=st.sampled_from([*SETS, (1, 2, 3, 6), (2, 3, 6)]),
    num_extra=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_update_errors_are_mean_squares(size, granularities, num_extra):
    grids = [[math.ceil(n / side) for n in size] for side in granularities]
    lengths = [math.prod(grid) for grid in grids]
    updates = torch.randn(2, num_extra + sum(lengths), 3).double()
    found = update_errors(updates, size, granularities)

    per_grain = updates[:, num_extra:].split(lengths, dim=1)
    region = granularities[-1]
    expected = torch.zeros_like(found)
    for k, (side, grid) in enumerate(zip(granularities, grids, strict=True)):
        for i, j in np.ndindex(*found.shape[1:3]):
            rows = range(i * region, min((i + 1) * region, size[0]))
            columns = range(j * region, min((j + 1) * region, size[1]))
            squares = [
                per_grain[k][:, row // side * grid[1] + column // side]
                - per_grain[0][
                    :,
                    row // granularities[0] * grids[0][1]
                    + column // granularities[0],
                ]
                for row in rows
                for column in columns
            ]
            mean = torch.stack(squares).square().mean((0, 2))
            expected[:, i, j, k] = mean
    torch.testing.assert_close(found, expected)
    assert found[..., 0].eq(0).all()


@given(size=sizes, granularities=st.sampled_from([(1, 2, 4), (1, 4), (1, 2)]))
@settings(max_examples=40, deadline=None)
def test_errors_of_the_tokens_themselves_are_their_variance(
    size, granularities
):
    x = torch.randn(2, 1 + math.prod(size), 3)
    errors = update_errors(candidates(x, size, granularities), size,
                           granularities)  # fmt: skip
    variance = region_variance(x[:, 1:].unflatten(1, size), granularities[-1])
    torch.testing.assert_close(errors[..., -1], variance)


@given(size=sizes, side=st.sampled_from([1, 2, 4]), num=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_patches_of_equal_tokens_lose_nothing(size, side, num):
    """Whatever an update is, for equal queries it is the same."""
    granularities = (1, 2, 4)
    grid = [math.ceil(n / side) for n in size]
    tokens = unpool(torch.randn(2, *grid, 3), side, size).flatten(1, 2)
    x = torch.cat([torch.randn(2, num, 3), tokens], dim=1)
    updates = candidates(x, size, granularities).sin()
    errors = update_errors(updates, size, granularities)
    spared = granularities.index(side) + 1
    assert errors[..., :spared].max() < 1e-10
    whole = [n >= 4 for n in size]
    if side < 4 and all(whole):
        assert errors[:, 0, 0, spared:].min() > 1e-10


def test_packed_rows_are_image_major():
    size, granularities = (8, 8), (1, 2, 4)
    x = torch.arange(3.0).view(3, 1, 1).expand(3, 64, 1)
    packing = plan_packing(
        random_choice(size, granularities), size, granularities
    )
    packed = pack_map(x, size, granularities, packing)
    owners = torch.arange(3.0).repeat_interleave(torch.tensor(packing.lengths))
    torch.testing.assert_close(packed.squeeze(1), owners)


def test_each_image_packs_alone_as_in_a_batch():
    size, granularities = (7, 10), (1, 2, 4)
    choice = random_choice(size, granularities)
    x = torch.randn(3, 70, 4)
    packing = plan_packing(choice, size, granularities)
    together = pack_map(x, size, granularities, packing)
    together = together.split(packing.lengths)
    for i in range(3):
        alone = plan_packing(choice[i : i + 1], size, granularities)
        packed = pack_map(x[i : i + 1], size, granularities, alone)
        torch.testing.assert_close(packed, together[i])


@pytest.mark.parametrize('granularities', SETS)
def test_gradients_flow_through_packing(granularities):
    size = (5, 6)
    x = torch.randn(2, 30, 2, dtype=torch.float64, requires_grad=True)
    choice = random_choice(size, granularities, batch_size=2)
    packing = plan_packing(choice, size, granularities)

    def there_and_back(x):
        return unpack(pack_map(x, size, granularities, packing), packing)

    assert torch.autograd.gradcheck(there_and_back, x)


def test_content_regions_hold_any_of_the_image():
    content = torch.zeros(3, 33, 48, dtype=torch.bool)
    content[0, :17, :16] = True
    content[1] = True
    cells = torch.nn.functional.max_pool2d(content.float(), 8, ceil_mode=True)
    regions = content_regions(cells, (3, 3), 2)
    assert regions[0].int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert regions[1].all()
    assert regions[2].all()  # nothing to tell padding from
    assert content_regions(None, (3, 3), 2) is None
    assert content_regions(cells, (2, 3), 2).shape == (3, 2, 3)
