"""Dense first, then the shares, resumed or not."""

from types import SimpleNamespace

import pytest
from torch import nn

from mmdge import RoutingWarmupHook
from mmdge.models import DGEPVT

ARCH = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
)


def test_progress():
    hook = RoutingWarmupHook(begin=0.2, end=0.6)
    parts = [0, 0.2, 0.4, 0.6, 1]
    assert [hook.progress(p) for p in parts] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    assert RoutingWarmupHook(0, 0).progress(0) == 1


def test_it_drives_the_routers_from_the_iteration_alone():
    model = nn.Module()
    model.backbone = DGEPVT(ARCH, routing='variance')
    routers = [block.router for block in model.backbone.block1]
    hook = RoutingWarmupHook(begin=0.2, end=0.6)
    runner = SimpleNamespace(model=model, iter=40, max_iters=100)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert routers[0].progress == pytest.approx(0.5)
    model.eval()
    assert routers[0].progress == 1


@pytest.mark.parametrize('begin, end', [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_mistakes_are_named(begin, end):
    with pytest.raises(ValueError, match='0 <= begin <= end <= 1'):
        RoutingWarmupHook(begin, end)
