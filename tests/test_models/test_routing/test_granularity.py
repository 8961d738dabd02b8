"""Regions, patches and their inverses, against plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.models.routing import Grains, WithGate, region_variance
from mmdge.models.routing.granularity import pool, unpool

SETS = [(1,), (1, 2), (1, 2, 4), (2, 4), (1, 2, 4, 8)]
sizes = st.tuples(st.integers(1, 19), st.integers(1, 19))
maps = given(
    size=sizes,
    sides=st.sampled_from([*SETS, (1, 2, 3, 6), (2, 3, 6)]),
    num_extra=st.integers(0, 2),
)


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


def grids_of(size, sides):
    return [tuple(math.ceil(n / side) for n in size) for side in sides]


def random_choice(grains, batch_size=3):
    return torch.randint(len(grains.sides), (batch_size, *grains.grids[-1]))


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


@maps
@settings(max_examples=60, deadline=None)
def test_candidates_are_the_map_pooled_at_each(size, sides, num_extra):
    x = torch.randn(2, num_extra + math.prod(size), 3)
    grid = x[:, num_extra:].unflatten(1, size)
    pooled = [pool_loop(grid, side).flatten(1, 2) for side in sides]
    expected = torch.cat([x[:, :num_extra], *pooled], dim=1)
    found = torch.cat(Grains(size, sides, num_extra).candidates(x), 1)
    torch.testing.assert_close(found, expected)


@maps
@settings(max_examples=60, deadline=None)
def test_rows_are_counted_as_they_are_chosen(size, sides, num_extra):
    grains = Grains(size, sides, num_extra)
    choice = random_choice(grains)
    counts = grains.row_counts(choice.device)
    expected = counts.expand(3, -1, -1, -1).gather(-1, choice[..., None])
    chosen = grains.choose(choice)
    assert chosen.lengths == (expected.flatten(1).sum(1) + num_extra).tolist()
    assert chosen.counts.tolist() == chosen.lengths
    per_grain = [math.prod(grid) for grid in grids_of(size, sides)]
    assert counts.sum((0, 1)).tolist() == per_grain


@maps
@settings(max_examples=60, deadline=None)
def test_pooling_inverts_unpooling(size, sides, num_extra):
    grains = Grains(size, sides, num_extra)
    pack, unpack, lengths, *_ = grains.choose(random_choice(grains))
    rows = torch.randn(sum(lengths), 4)
    tokens = unpack(rows)
    assert tokens.shape == (3, num_extra + math.prod(size), 4)
    torch.testing.assert_close(pack(grains.candidates(tokens)), rows)


@maps
@settings(max_examples=60, deadline=None)
def test_gates_choose_and_get_their_gradient(size, sides, num_extra):
    """Against all candidates, un-pooled, times their gates, added up."""
    grains = Grains(size, sides, num_extra)
    choice = random_choice(grains)
    x = torch.randn(3, num_extra + math.prod(size), 4).double()
    updates = [part.sin() for part in grains.candidates(x)]
    gate = F.one_hot(choice, len(sides)).double().requires_grad_()
    grids = grids_of(size, sides)
    extra, *parts = torch.cat(updates, 1).split(
        [num_extra, *map(math.prod, grids)], dim=1
    )
    total = 0
    for k, (part, side, grid) in enumerate(
        zip(parts, sides, grids, strict=True)
    ):
        own = unpool(gate[..., k], sides[-1], size)[..., None]
        total = total + own * unpool(part.unflatten(1, grid), side, size)
    total = torch.cat([extra, total.flatten(1, 2)], dim=1)

    pack, unpack, *_ = grains.choose(choice)
    tokens = unpack(pack(updates))
    torch.testing.assert_close(tokens, total)
    once = grains.spread(gate)
    assert once.shape == (*tokens.shape[:2], 1) and once.eq(1).all()

    weights = torch.randn_like(total)
    (expected,) = torch.autograd.grad((total * weights).sum(), gate)
    gated = WithGate.apply(tokens, gate, torch.cat(updates, 1), grains)
    assert gated.equal(tokens)
    (gradient,) = torch.autograd.grad((gated * weights).sum(), gate)
    torch.testing.assert_close(gradient, expected)
    # Of the chosen candidate alone, in sparse training.
    (sparse,) = torch.autograd.grad((tokens * once * weights).sum(), gate)
    torch.testing.assert_close(
        sparse.gather(-1, choice[..., None]) + 0 * sparse,
        (expected * gate).sum(-1, keepdim=True) + 0 * sparse,
    )


@maps
@settings(max_examples=60, deadline=None)
def test_errors_are_mean_squares(size, sides, num_extra):
    grains = Grains(size, sides, num_extra)
    grids = grids_of(size, sides)
    lengths = [math.prod(grid) for grid in grids]
    updates = torch.randn(2, num_extra + sum(lengths), 3).double()
    found = grains.errors(updates)
    per_grain = updates[:, num_extra:].split(lengths, dim=1)
    region = sides[-1]
    expected = torch.zeros_like(found)
    for k, i, j in np.ndindex(len(sides), *found.shape[1:3]):
        squares = [
            per_grain[k][:, row // sides[k] * grids[k][1] + column // sides[k]]
            - per_grain[0][
                :, row // sides[0] * grids[0][1] + column // sides[0]
            ]
            for row in range(i * region, min((i + 1) * region, size[0]))
            for column in range(j * region, min((j + 1) * region, size[1]))
        ]
        expected[:, i, j, k] = torch.stack(squares).square().mean((0, 2))
    torch.testing.assert_close(found, expected)
    assert found[..., 0].eq(0).all()


@given(size=sizes, sides=st.sampled_from([(1, 2, 4), (1, 4), (1, 2)]))
@settings(max_examples=40, deadline=None)
def test_errors_of_the_tokens_themselves_are_their_variance(size, sides):
    x = torch.randn(2, 1 + math.prod(size), 3)
    grains = Grains(size, sides, 1)
    errors = grains.errors(torch.cat(grains.candidates(x), 1))
    variance = region_variance(grains.to_map(x), sides[-1])
    torch.testing.assert_close(errors[..., -1], variance)


@given(size=sizes, side=st.sampled_from([1, 2, 4]), num=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_patches_of_equal_tokens_lose_nothing(size, side, num):
    """Whatever an update is, for equal queries it is the same."""
    grains = Grains(size, (1, 2, 4), num)
    grid = [math.ceil(n / side) for n in size]
    tokens = unpool(torch.randn(2, *grid, 3), side, size).flatten(1, 2)
    x = torch.cat([torch.randn(2, num, 3), tokens], dim=1)
    errors = grains.errors(torch.cat(grains.candidates(x), 1).sin())
    spared = grains.sides.index(side) + 1
    assert errors[..., :spared].max() < 1e-10
    if side < 4 and min(size) >= 4:
        assert errors[:, 0, 0, spared:].min() > 1e-10


@pytest.mark.parametrize('sides', SETS)
def test_gradients_flow_through_packing(sides):
    grains = Grains((5, 6), sides)
    x = torch.randn(2, 30, 2, dtype=torch.float64, requires_grad=True)
    pack, unpack, *_ = grains.choose(random_choice(grains, batch_size=2))
    assert torch.autograd.gradcheck(
        lambda x: unpack(pack(grains.candidates(x))), x
    )
