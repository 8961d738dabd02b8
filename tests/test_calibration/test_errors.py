"""What blocks get wrong, seen without leaving a trace."""

import copy

import pytest
import torch

from mmdge.calibration import (
    collect_errors,
    find_price,
    ratio_at_price,
    set_price,
    set_routers,
)
from mmdge.models.routing import region_variance
from mmdge.utils import UserError

from .backbones import deit, pvt


def images(*sizes):
    return [torch.rand(2, 3, *size) for size in sizes or [(128, 128)]]


def entries(module):
    """What of a backbone could be changed by looking at it."""
    return {
        name: (
            type(part).__name__,
            part.training,
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
            getattr(part, 'price', None),
        )
        for name, part in module.named_modules()
    }


@pytest.mark.parametrize('build', [pvt, deit])
@pytest.mark.parametrize('routing', ['error', 'oracle', 'variance', 'learned'])
def test_the_backbone_stays_as_it_was(build, routing):
    model = build(routing, price=0.3)
    routers, before = model.routers, entries(model)
    state = copy.deepcopy(model.state_dict())
    collect_errors(model, images())
    assert all(a is b for a, b in zip(model.routers, routers, strict=True))
    assert entries(model) == before
    after = model.state_dict()
    assert all(after[key].equal(value) for key, value in state.items())
    assert after.keys() == state.keys()


def test_also_after_a_failure():
    model = pvt()
    before = entries(model)
    with pytest.raises(ValueError, match='expected images of shape'):
        collect_errors(model, [torch.rand(1, 5, 64, 64)])
    assert entries(model) == before


CASES = {
    'pvt': (pvt, {}),
    'pvt cls': (pvt, dict(with_cls_token=True, out_type='cls_token')),
    'pvt last': (pvt, dict(out_indices=(3,))),
    'pvt per stage': (
        pvt,
        dict(granularities=[(1, 2, 4), (1, 2), (1,), (1,)]),
    ),
    'pvt (2, 4)': (pvt, dict(granularities=(2, 4))),
    'pvt mixed': (pvt, dict(routing=['error', 'finest', 'error', 'finest'])),
    'pvt (2, 4) mixed': (
        pvt,
        dict(
            granularities=[(2, 4), (1, 2, 4), (2,), (1, 2, 4)],
            routing=['finest', 'error', 'error', 'error'],
        ),
    ),
    'deit': (deit, {}),
    'deit cls': (deit, dict(out_type='cls_token')),
    'deit pair': (deit, dict(out_type='cls_token', distilled=True)),
    'deit several': (deit, dict(out_indices=(0, 2))),
}


@pytest.mark.parametrize(('build', 'kwargs'), CASES.values(), ids=CASES)
def test_all_that_routes_is_seen(build, kwargs):
    """Of any sizes of images, and of single ones."""
    model = build(**kwargs)
    sizes = [(128, 128), (64, 160), (100, 77)]
    batches = [x[:1] for x in images(*sizes)]
    seen = collect_errors(model, batches)
    assert len(seen) == len(model.routers) > 0
    for entry, router in zip(seen, model.routers, strict=True):
        num = len(entry.variance)
        assert entry.errors.shape == (num, router.num_candidates)
        assert entry.errors.isfinite().all() and entry.errors.ge(0).all()
        assert entry.errors[:, 0].eq(0).all()
        assert entry.errors[:, -1].mean() > 0
        assert entry.flops > 0


def test_variance_and_errors_are_those_of_the_dense_twin():
    model, (x,) = pvt(price=-1.0), images()  # so all is finest
    seen, inputs = collect_errors(model, [x]), []
    for router in model.routers:
        router.register_forward_pre_hook(lambda _, args: inputs.append(args))
    with torch.no_grad():
        model(x)
    assert model.cost.ratio.eq(1).all()
    for entry, (tokens, _, errors) in zip(seen, inputs, strict=True):
        torch.testing.assert_close(
            entry.variance, region_variance(tokens, 4).flatten()
        )
        torch.testing.assert_close(entry.errors, errors().flatten(0, 2))


def test_flops_are_those_of_a_row():
    model = pvt()
    (entry, *_) = collect_errors(model, images((64, 96), (96, 64)))
    assert entry.flops == model.block1[0].flops((16, 24), 0).per_row


@pytest.mark.parametrize('build', [pvt, deit])
def test_padding_is_not_seen(build):
    model, (x,) = build(), images()
    padded = torch.cat([x, torch.zeros_like(x)], dim=3)
    seen, alone = collect_errors(model, [padded]), collect_errors(model, [x])
    for entry, other in zip(seen, alone, strict=True):
        assert len(entry.variance) == len(entry.errors) == len(other.variance)


@pytest.mark.parametrize(('build', 'kwargs'), CASES.values(), ids=CASES)
def test_all_that_routes_is_set_and_priced(build, kwargs):
    """And what doesn't is what it was, whatever the price."""
    model, batches = build(**kwargs), images((128, 128), (64, 160))
    set_routers(model, collect_errors(model, batches))
    ratio_at = ratio_at_price(model, batches)
    wanted = (ratio_at(-2.0) + ratio_at(100.0)) / 2
    _, spent = find_price(ratio_at, wanted)
    assert spent == pytest.approx(wanted, abs=0.05)
    set_price(model, 1e3)
    model(batches[0])
    regions = {
        name.removesuffix('.router'): router.cell
        for name, router in model.routers_by_name().items()
    }
    for found in model.cost.maps:
        # Of those that don't route only what is coarser than a token is told.
        side = regions.get(found.name, 2)
        assert found.share.eq(side**-2).all()


@pytest.mark.parametrize(
    ('build', 'size'),
    [(pvt, (160, 160)), (pvt, (32, 160)), (deit, (72, 72))],
)
def test_what_has_no_choice_bends_no_fit(build, size):
    """A corner of a single token has neither a variance nor an error."""
    for entry in collect_errors(build(), images(size)):
        assert entry.variance.gt(0).all()
        assert entry.errors[:, -1].gt(0).all()


@pytest.mark.parametrize('routing', ['error', 'oracle', 'shuffled'])
@pytest.mark.parametrize('price', [-5.0, -1.0, 0.0, 5.0])
def test_padding_is_coarsest_at_any_price(routing, price):
    model = pvt(routing, price=price)
    (x,) = images()
    model(torch.cat([x, torch.zeros_like(x)], dim=3))
    for found in model.cost.maps:
        padding = ~found.valid
        assert padding.any() and found.share[padding].eq(1 / 16).all()


def test_what_padding_cannot_spend_is_out_of_reach():
    model, (x,) = pvt(), images()
    padded = [torch.cat([x, torch.zeros_like(x)], dim=3)]
    set_routers(model, collect_errors(model, padded))
    ratio_at = ratio_at_price(model, padded)
    with pytest.raises(UserError, match='ratio=0.9 cannot be met: the backb'):
        find_price(ratio_at, 0.9)
    assert find_price(ratio_at, 0.4)[1] == pytest.approx(0.4, abs=0.02)
