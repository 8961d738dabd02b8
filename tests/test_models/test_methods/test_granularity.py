"""DGE's blocks, against a forward that packs nothing."""

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mmdge
from mmdge.models import DGEPVT
from mmdge.models.methods import granularity
from mmdge.models.routing import Grains
from mmdge.models.routing.granularity import pool, unpool
from mmdge.utils.counting import flop_counter
from tests.small import PVT, deit, pictures, pvt

SETS = [(1,), (1, 2), (1, 2, 4), (2, 4), (1, 2, 4, 8)]
QUIET = dict(type='GumbelRouter', noise=False)
RANKED = dict(type='QuantileRouter', score='learned')
ROUTINGS = [
    *('learned', 'variance', RANKED, 'error', 'oracle', 'shuffled'),
    *('random', 'uniform', 'finest'),
]
both = pytest.mark.parametrize('build', [pvt, deit])


def difference(one, other):
    """The largest of all maps, relative to the maps."""
    return max(
        float((a - b).float().norm() / b.float().norm())
        for a, b in zip(one, other, strict=True)
    )


# A block that is left out makes a difference of .05 and more, see below.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def autocast(dtype):
    if dtype is torch.float32:
        return nullcontext()
    return torch.autocast('cpu', dtype=dtype)


@contextmanager
def recorded():
    """Note the decisions that are made."""
    decisions, decide = [], granularity.decide

    def note(*args):
        decisions.append(decide(*args))
        return decisions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(granularity, 'decide', note)
        yield decisions


@contextmanager
def in_the_papers_form(decisions=None):
    """Blocks compute everything; by decisions of theirs, or these."""
    choose = Grains.choose

    def keep(grains, choice, *args):
        return choose(grains, choice, *args)._replace(pool=choice)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grains, 'choose', keep)
        patch.setattr(granularity, 'update_chosen', paper)
        if decisions is not None:
            left = iter(decisions)
            patch.setattr(granularity, 'decide', lambda *_: next(left))
        yield


def paper(block, tokens, grains, chosen, gate, sparse):
    """All candidates, un-pooled, times their gates, added up.

    Arguments as of :func:`update_chosen`; in place of ``chosen.pool`` is the
    decision.
    """
    if gate is None:
        gate = F.one_hot(chosen.pool, len(grains.sides))
    elif sparse:
        gate = gate * gate.detach()
    source, _, context = block.prepare(tokens, grains.size)
    extra, grid = tokens[:, : grains.num_extra], grains.to_map(tokens)
    total = 0
    for k, side in enumerate(grains.sides):
        pooled = pool(grid, side)
        rows = torch.cat([extra, pooled.flatten(1, 2)], 1)
        lengths = [rows.shape[1]] * len(rows)
        update = block.update(rows.flatten(0, 1), lengths, context)
        update = update.view_as(rows)
        patches = update[:, grains.num_extra :].unflatten(1, pooled.shape[1:3])
        own = unpool(gate[..., k], grains.region, grains.size)[..., None]
        total = total + own * unpool(patches, side, grains.size)
    # Extra tokens are rows at any granularity.
    update = torch.cat([update[:, : grains.num_extra], total.flatten(1, 2)], 1)
    return source + update.to(source.dtype)


@both
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    batch_size=st.integers(1, 5),
    granularities=st.sampled_from(SETS),
    routing=st.sampled_from(ROUTINGS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_finite_right_and_counted(
    build, size, batch_size, granularities, routing, dtype
):
    model = build(routing, granularities=granularities).eval()
    x = pictures(batch_size, *size)
    with torch.no_grad(), autocast(dtype), recorded() as decisions:
        with flop_counter() as counter:
            maps = model(x)
        cost = model.cost
        assert all(out.isfinite().all() for out in maps)
        if routing != 'oracle':  # which computes what it then does without
            assert counter.get_total_flops() == 2 * cost.dynamic.sum()
        with in_the_papers_form(decisions):
            expected = model(x)
    assert difference(maps, expected) < TOLERANCE[dtype]


@both
@pytest.mark.parametrize('routing', ['learned', QUIET, RANKED], ids=str)
@pytest.mark.parametrize('granularities', SETS[2:])
@pytest.mark.parametrize('sparse', [False, True])
def test_gradients_are_those_of_the_papers_form(
    build, routing, granularities, sparse
):
    model = build(
        routing, granularities=granularities, sparse_training=sparse
    ).double()
    other, x = copy.deepcopy(model), pictures(3, 100, 76).double()
    for trained, form in ((model, nullcontext), (other, in_the_papers_form)):
        torch.manual_seed(1)
        with form():
            maps = trained(x)
        sum((m * torch.randn_like(m)).mean() for m in maps).backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-6)


@both
def test_a_block_left_out_would_be_seen(build, monkeypatch):
    model, x = build('uniform').eval(), pictures(2, 96, 80)
    with torch.no_grad():
        maps = model(x)
        for block in [b for stage in model.stages for b in stage]:
            with monkeypatch.context() as patch:
                patch.setattr(block, 'update', lambda rows, *_: 0 * rows)
                assert difference(model(x), maps) > 0.05


@both
@pytest.mark.parametrize('shape', [(2, 128, 128), (1, 100, 77)])
def test_candidates_errors_are_their_differences_to_the_finest(build, shape):
    model, seen = build('variance').eval(), []
    for router in model.routers:
        router.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    with torch.no_grad():
        model(pictures(*shape))
        for errors in seen:
            block, tokens, grains = errors.block, errors.tokens, errors.grains
            updates = []
            for k in range(3):
                cells = grains.grids[-1]
                choice = torch.full((len(tokens), *cells), k)
                chosen = grains.choose(choice)._replace(pool=choice)
                out = paper(block, tokens, grains, chosen, None, False)
                updates.append(grains.to_map(out - tokens))
            for k, update in enumerate(updates):
                square = (update - updates[0]).square().mean(-1, keepdim=True)
                expected = pool(square, grains.region)[..., 0]
                torch.testing.assert_close(
                    errors()[..., k], expected, rtol=1e-3, atol=1e-5
                )
    assert len(seen) == len(model.routers) > 0


@both
def test_all_regions_finest_equals_the_dense_twin(build):
    finest = dict(type='UniformRouter', share=(1.0, 0.0, 0.0))
    model, x = build(finest).eval(), torch.rand(2, 3, 100, 132)
    maps, cost = model(x), model.cost
    assert cost.dynamic.equal(cost.dense)
    with model.as_dense_twin():
        for a, b in zip(maps, model(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@both
@pytest.mark.parametrize('routing', ['variance', 'error', 'finest'])
def test_where_a_token_is_no_candidate_the_finest_patches_are(build, routing):
    """While routing warms up, and for good if there is none."""
    model = build(routing, granularities=(2, 4))
    model.anneal(0.0)
    model(pictures(2, 64, 64))
    assert all(m.share.eq(1 / 4).all() for m in model.cost.maps)
    assert len(model.cost.maps) == sum(map(len, model.stages))
    assert model.cost.ratio.lt(1).all()


@both
def test_padding_takes_no_share(build):
    """Half the canvas is padding; the image is routed as without."""
    model, image = build('variance').eval(), torch.rand(1, 3, 128, 128) + 0.1
    model(image)
    plain = [m.share for m in model.cost.maps]
    model(F.pad(image, (0, 128)))
    for alone, routed in zip(plain, model.cost.maps, strict=True):
        inside, padding = routed.share.split(alone.shape[2], 2)
        assert (inside == 1).sum() == (alone == 1).sum()
        assert padding.eq(1 / 16).all()


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_200_steps_with_the_budget_loss_stay_finite(dtype):
    torch.manual_seed(0)
    model = DGEPVT(PVT, pretrain_img_size=64).train()
    hook = mmdge.CostHook(budget=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype is torch.float16)
    skipped = 0
    for _ in range(200):
        x = torch.rand(2, 3, 64, 64)
        with autocast(dtype):
            maps = model(x)
            # The mean of each image, from its last map.
            task = (maps[-1].mean((1, 2, 3)) - x.mean((1, 2, 3))).square()
            losses = hook.losses(model.cost)
            loss = task.mean() + losses['loss_budget']
        assert loss.isfinite()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
    assert skipped < 20  # of a scale that began too high
    assert all(p.isfinite().all() for p in model.parameters())
    assert losses['flops_ratio'] < 0.9  # it began at 1
