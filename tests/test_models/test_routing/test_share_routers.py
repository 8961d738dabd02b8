"""Routers with shares: how much, where, and what is remembered."""

import pytest
import torch

from mmdge.models.routing import (
    QuantileRouter,
    build_router,
    default_share,
)

from .maps import GRAINS, shares, textured


@pytest.mark.parametrize('share', [(0.35, 0.25, 0.4), (0.1, 0.0, 0.9)])
@pytest.mark.parametrize('kind', ['RandomRouter', 'UniformRouter'])
def test_controls_meet_their_shares(kind, share):
    router = build_router(dict(type=kind, share=share), 4, *GRAINS)
    decision = router(torch.zeros(4, 160, 160, 4))
    torch.testing.assert_close(
        shares(decision, 3), torch.tensor(share), atol=0.03, rtol=0
    )


@pytest.mark.parametrize('score', ['variance', 'learned'])
def test_quantile_router_meets_its_shares_and_varies_over_images(score):
    torch.manual_seed(0)
    router = build_router(dict(type='QuantileRouter', score=score), 8, *GRAINS)
    for _ in range(60):
        router(textured())
    router.eval()
    decision = router(textured(batch_size=64))
    torch.testing.assert_close(
        shares(decision, 3), torch.tensor(router.share), atol=0.03, rtol=0
    )
    finest = (decision.choice == 0).float().flatten(1).mean(1)
    assert finest.std() > 0.02


@pytest.mark.parametrize('batch_size', [1, 2, 8])
def test_shares_hold_where_images_differ_whatever_the_batch(batch_size):
    """A few images are no sample of the data set; many batches are."""
    torch.manual_seed(0)
    router = build_router('variance', 4, *GRAINS)

    def images(num):
        level = torch.randn(num, 1, 1, 1).exp()  # some images are all detail
        return textured(num, size=16, dims=4) * level

    for _ in range(400):
        router(images(batch_size))
    decision = router.eval()(images(1000))
    # 128 steps are remembered: with one image each, 128 images.
    torch.testing.assert_close(
        shares(decision, 3), torch.tensor(router.share), atol=0.08, rtol=0
    )


def test_quantile_router_serves_a_static_checkpoint_as_it_is():
    """Without running quantiles each image meets the shares by itself."""
    router = build_router('variance', 8, *GRAINS).eval()
    decision = router(textured(size=160))
    for choice in decision.choice:
        share = choice.flatten().bincount(minlength=3) / choice.numel()
        torch.testing.assert_close(
            share, torch.tensor(router.share), atol=0.01, rtol=0
        )


def test_variance_routing_spends_on_detail():
    x = torch.zeros(1, 16, 16, 4)
    x[:, :8, :8] = torch.randn(8, 8, 4)
    routing = dict(type='QuantileRouter', share=(0.25, 0.0, 0.75))
    decision = build_router(routing, 4, *GRAINS).eval()(x)
    assert decision.choice[0].tolist() == [[0, 0, 2, 2]] * 2 + [[2] * 4] * 2


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_a_broken_image_is_no_matter_to_others(value):
    router = build_router('variance', 8, *GRAINS)
    router(textured())
    x, broken = textured(), textured()
    broken[1:] = x[1:]
    broken[0] = value
    router.eval()
    assert router(broken).choice[1:].equal(router(x).choice[1:])
    router.train()(broken)
    assert router.quantiles.isfinite().all()
    assert router.history.isfinite().all()


@pytest.mark.parametrize(
    'routing', ['variance', dict(type='QuantileRouter', score='learned')]
)
@pytest.mark.parametrize('steps', [0, 20])
def test_padding_changes_no_share(routing, steps):
    """Padded or not, in training or at test, an image is routed alike."""
    router, padded_router = (build_router(routing, 8, *GRAINS) for _ in 'ab')
    padded_router.load_state_dict(router.state_dict())

    def pad(x):
        return torch.nn.functional.pad(x, (0, 0, 0, 16, 0, 8))

    valid = torch.zeros(4, 10, 12, dtype=torch.bool)
    valid[:, :8, :8] = True
    for _ in range(steps):
        x = textured()
        router(x)
        padded_router(pad(x), valid)
    x = textured()
    plain = router.eval()(x).choice
    padded = padded_router.eval()(pad(x), valid).choice
    assert padded[valid].equal(plain.flatten())
    assert (padded[~valid] == 2).all()
    assert router.quantiles.allclose(padded_router.quantiles, atol=1e-5)


def test_progress_goes_from_dense_to_the_share():
    router = build_router('uniform', 4, *GRAINS)
    x = torch.zeros(1, 128, 128, 4)
    router.train_progress = 0.0
    assert router(x) is None
    finest = []
    for progress in (0.25, 0.5, 0.75, 1.0):
        router.train_progress = progress
        finest.append(shares(router(x), 3)[0].item())
    assert finest == sorted(finest, reverse=True)
    assert finest[-1] == pytest.approx(0.35, abs=0.03)
    router.eval().train_progress = 0.0
    assert shares(router(x), 3)[0] == finest[-1]


def test_a_learned_ranking_keeps_its_gradient_while_dense():
    router = build_router(
        dict(type='QuantileRouter', score='learned'), 8, *GRAINS
    )
    router.train_progress = 0.0
    decision = router(textured())
    assert (decision.choice == 0).all()
    (decision.gate * torch.randn(3)).sum().backward()
    assert all(p.grad is not None for p in router.parameters())


def test_the_first_step_weighs_as_much_as_the_others():
    router = build_router('variance', 8, *GRAINS)
    router(textured() * 100)  # as it happens, all detail
    for _ in range(9):
        router(textured())
    finest = shares(router.eval()(textured(batch_size=64)), 3)[0]
    assert finest == pytest.approx(0.28, abs=0.05)  # not near 0


def test_what_is_remembered_travels_in_the_state_dict():
    router = QuantileRouter(8, *GRAINS)
    router(textured())
    other = QuantileRouter(8, *GRAINS)
    other.load_state_dict(router.state_dict())
    assert other.num_updates == 1
    assert other.quantiles.equal(router.quantiles)
    # A ranking to be learned starts as the variance's, so it may go on.
    learned = QuantileRouter(8, *GRAINS, score='learned')
    learned.load_state_dict(router.state_dict(), strict=False)
    assert learned.num_updates == 1


def test_scores_of_another_kind_are_forgotten():
    router = QuantileRouter(8, *GRAINS, score='learned')
    router(textured())
    state = router.state_dict()
    for other in (
        QuantileRouter(8, *GRAINS),
        QuantileRouter(8, (1, 1 / 4), 2, score='learned'),
        QuantileRouter(8, *GRAINS, score='learned', num_steps=64),
    ):
        with pytest.warns(UserWarning, match='another kind of router'):
            other.load_state_dict(dict(state), strict=False)
        assert other.num_updates == 0
        assert other.history_region == other.cell


@pytest.mark.parametrize('num', [1, 2, 3, 4])
def test_default_share_adds_up(num):
    assert len(default_share(num)) == num
    assert sum(default_share(num)) == pytest.approx(1)
