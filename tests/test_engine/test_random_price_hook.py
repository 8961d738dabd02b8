"""One checkpoint, trained for many budgets."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmdge import RandomPriceHook
from mmdge.models import DGEPVT
from tests.small import cf_vit

ARCH = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
)


def test_each_step_of_a_training_draws_one_for_the_whole_network():
    model = nn.Module()
    model.backbone = DGEPVT(ARCH, routing='error')
    for router in model.backbone.routers:
        router.weight.fill_(300)  # or all is coarsest, before training
    runner = SimpleNamespace(model=model, seed=0, iter=0)
    x = torch.rand(2, 3, 128, 128)

    def ratio():
        with torch.no_grad():
            model.backbone(x)
        return model.backbone.cost.ratio.mean().item()

    own = ratio()
    hook = RandomPriceHook([0.0, -1.0, 1e6])
    hook.before_train(runner)
    seen = {}
    for runner.iter in range(30):
        hook.before_train_iter(runner, 0)
        (price,) = {r.train_price for r in model.backbone.routers}
        seen[price] = ratio()
        model.eval()  # sees nothing of it
        assert ratio() == own
        model.train()
    assert seen.keys() == {0.0, -1.0, 1e6}
    assert seen[0.0] == own
    assert seen[-1.0] == 1 > seen[1e6] < own
    hook.after_train(runner)
    assert ratio() == own


def test_it_depends_on_seed_and_iteration_alone():
    model = nn.Module()
    model.backbone = DGEPVT(ARCH, routing='error')

    def prices(seed, first):
        hook = RandomPriceHook([0.0, 1.0, 2.0])
        runner = SimpleNamespace(model=model, seed=seed, iter=0)
        hook.before_train(runner)
        drawn = []
        for runner.iter in range(first, 20):
            hook.before_train_iter(runner, 0)
            drawn.append(model.backbone.routers[0].train_price)
        return drawn

    assert prices(0, 0)[5:] == prices(0, 5)  # resumed
    assert prices(0, 0) != prices(1, 0)


def test_a_backbone_without_a_price_in_training():
    model = nn.Module()
    model.backbone = cf_vit(num_classes=5)
    hook = RandomPriceHook([0.0, 0.5])
    with pytest.raises(ValueError, match='no price moves what CFViT spends'):
        hook.before_train(SimpleNamespace(model=model))


@pytest.mark.parametrize('prices', [[], 0.3, [0.1, 'x'], None])
def test_mistakes_are_named(prices):
    with pytest.raises(ValueError, match='prices must be a sequence'):
        RandomPriceHook(prices)
