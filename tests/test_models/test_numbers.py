"""Any size, any routing, any precision: finite, right, and counted right."""

import math
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mmdge
from mmdge.models import DGEPVT, DGEDeiT
from mmdge.models.routing import DGEBlock
from mmdge.utils.counting import flop_counter

SETS = [(1,), (1, 2), (1, 2, 4), (2, 4), (1, 2, 4, 8)]
ROUTINGS = [
    'learned',
    'variance',
    dict(type='QuantileRouter', score='learned'),
    'error',
    'oracle',
    'shuffled',
    'random',
    'uniform',
    'finest',
]
PVT = dict(
    embed_dims=(8, 16, 24, 32), num_layers=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)
)
DEIT = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)


def build(family, routing, granularities=(1, 2, 4)):
    """A small model whose blocks matter, and whose routers differ."""
    model = family(
        PVT if family is DGEPVT else DEIT,
        routing=routing,
        granularities=granularities,
        drop_path_rate=0.0,
        pretrain_img_size=64,
    )
    for name, parameter in model.named_parameters():
        if 'router.gate.bias' in name:
            nn.init.zeros_(parameter)
        elif 'router.gate.weight' in name:
            nn.init.normal_(parameter, std=0.5)
        elif re.search(r'blocks?\d?\.', name) and 'norm' not in name:
            parameter.data.mul_(3)
    return model.eval()


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


def reference(maps):
    """A forward of a block without packing, by the decisions it made.

    Image by image and granularity by granularity; each computes all of its
    patches, and a region takes its own.
    """

    def forward(self, x, size, stride, content=None):
        decided = maps.get(self.name)
        if decided is None:
            granularity = torch.ones(len(x), 1, 1, dtype=torch.long)
        else:
            granularity = decided.granularity
        images = []
        for tokens, chosen in zip(x, granularity, strict=True):
            num_extra = len(tokens) - math.prod(size)
            extra, grid = tokens[:num_extra], tokens[num_extra:]
            grid = grid.T.reshape(1, -1, *size)  # (1, C, H, W)
            region = self.router.region if self.router else max(size)
            out = None
            for side in chosen.unique().tolist():
                pooled = F.avg_pool2d(grid.float(), side, ceil_mode=True).to(
                    grid.dtype
                )
                rows = torch.cat([extra, pooled.flatten(2)[0].T])
                normed = self.norm1(tokens[None])
                update, _ = self._update(
                    rows, self.norm1(rows), [len(rows)], (None, None),
                    normed, size,
                )  # fmt: skip
                whole = update[num_extra:].T.reshape_as(pooled)
                for axis in (2, 3):
                    whole = whole.repeat_interleave(side, axis)
                whole = whole[..., : size[0], : size[1]]
                whole = torch.cat([update[:num_extra], whole.flatten(2)[0].T])
                if out is None:
                    out = torch.zeros_like(whole)
                own = chosen.eq(side)
                for axis in (0, 1):
                    own = own.repeat_interleave(region, axis)
                own = own[: size[0], : size[1]].flatten()
                out[num_extra:][own] = whole[num_extra:][own]
                out[:num_extra] = whole[:num_extra]
            images.append(tokens + out)
        return torch.stack(images), self._cost(x, size)

    return forward


@pytest.mark.parametrize('family', [DGEPVT, DGEDeiT])
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    batch_size=st.integers(1, 5),
    granularities=st.sampled_from(SETS),
    routing=st.sampled_from(ROUTINGS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_finite_right_and_counted(
    family, height, width, batch_size, granularities, routing, dtype
):
    model = build(family, routing, granularities)
    torch.manual_seed(height * 301 + width)
    # Smooth and rough regions, a different share of them in each image.
    x = torch.rand(batch_size, 3, height, width)
    x[..., : width // 2] *= torch.rand(batch_size, 1, 1, 1)
    with torch.no_grad(), autocast(dtype):
        with flop_counter() as counter:
            maps = model(x)
        cost = model.cost
        assert all(out.isfinite().all() for out in maps)
        if routing != 'oracle':  # which computes what it then does without
            assert counter.get_total_flops() == 2 * cost.dynamic.sum()
        assert cost.dense.gt(0).all() and cost.dynamic.gt(0).all()
        with pytest.MonkeyPatch.context() as patch:
            decided = {m.name: m for m in cost.maps}
            patch.setattr(DGEBlock, 'forward', reference(decided))
            expected = model(x)
    assert difference(maps, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize('family', [DGEPVT, DGEDeiT])
def test_a_block_left_out_would_be_seen(family, monkeypatch):
    model = build(family, 'uniform')
    x = torch.rand(2, 3, 96, 80)
    with torch.no_grad():
        maps = model(x)
        for block in [m for m in model.modules() if isinstance(m, DGEBlock)]:
            with monkeypatch.context() as patch:
                forward = block.forward
                patch.setattr(
                    block,
                    'forward',
                    lambda x, *args, f=forward, **kw: (
                        x,
                        f(x, *args, **kw)[1],
                    ),
                )
                assert difference(model(x), maps) > 0.05


@pytest.mark.parametrize('family', [DGEPVT, DGEDeiT])
@pytest.mark.parametrize('routing', ROUTINGS, ids=str)
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('training', [False, True])
def test_what_is_not_finite_stays_in_its_image(family, routing, bad, training):
    model = build(family, routing)
    x = torch.rand(3, 3, 96, 64)
    broken = x.clone()
    broken[1, :, 10:40, 10:40] = bad
    if training:
        model.train()
        model(broken)
    for images in (broken, x):
        with torch.set_grad_enabled(training):
            maps = model(images)
        for out in maps:
            assert out[[0, 2]].isfinite().all()
        if images is broken:
            assert not all(out[1].isfinite().all() for out in maps)
            assert model.cost.dynamic[[0, 2]].isfinite().all()
    if not training and routing not in ('random', 'shuffled'):
        for out, right in zip(model(broken), model(x), strict=True):
            torch.testing.assert_close(
                out[[0, 2]], right[[0, 2]], atol=1e-5, rtol=0
            )


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_500_steps_with_the_budget_loss_stay_finite(dtype):
    torch.manual_seed(0)
    model = build(DGEPVT, 'learned').train()
    hook = mmdge.CostHook(budget=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype is torch.float16)
    skipped = 0
    for _ in range(500):
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
