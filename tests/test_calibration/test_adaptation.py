"""The dense twin teaches, and the amount is held."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import ImgDataPreprocessor

from mmdge.calibration import HoldRatio, price_slope
from mmdge.calibration.adaptation import Adaptation
from mmdge.utils import UserError

from .backbones import pvt

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Deciding:
    """A backbone's decisions are read from its first embedding."""

    def deciding_parts(self):
        return [self.patch_embed1, self.pos_embed1]


def adaptation():
    backbone = pvt(routing='uniform', frozen_stages=4)
    kind = type(backbone)
    backbone.__class__ = type('Fixed', (Deciding, kind), {})
    return Adaptation(backbone, ImgDataPreprocessor())


def test_the_loss_falls_but_decisions_stay():
    model = adaptation().train()
    assert not model.backbone.training
    first = model.backbone.patch_embed1.proj.weight.clone()
    teacher = model._teacher[0]
    before = teacher(X)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = model(X)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert model.backbone.patch_embed1.proj.weight.equal(first)
    moved = model.backbone.block1[0].mlp.fc1.weight
    assert not moved.equal(teacher.block1[0].mlp.fc1.weight)
    assert all(a.equal(b) for a, b in zip(teacher(X), before, strict=True))
    assert teacher.cost.ratio.eq(1).all()
    assert not any('teacher' in key for key in model.state_dict())


def test_images_of_several_sizes_are_padded():
    batch = [
        dict(inputs=[torch.ones(3, *size)]) for size in ((32, 64), (48, 32))
    ]
    images = adaptation().data_preprocessor(batch, True)['inputs']
    assert images.shape == (2, 3, 48, 64)
    assert images[0, :, :32].eq(1).all() and images[0, :, 32:].eq(0).all()
    assert images[1, :, :, 32:].eq(0).all()


@pytest.mark.parametrize('unit', [0.01, 1.0, 100.0])
def test_the_amount_is_held_while_features_move(unit):
    """At most a few hundredths off, in any unit of the price."""
    backbone = SimpleNamespace(routers=[SimpleNamespace(price=0.0)])
    (router,) = backbone.routers

    def ratio_at(price, drift=0.0):
        x = torch.tensor(drift - price / unit, dtype=torch.float64)
        return x.sigmoid().item()

    hold = HoldRatio(backbone, 0.5, price_slope(ratio_at, 0.5))
    runner = SimpleNamespace(iter=0, message_hub=MessageHub('held'))
    hold.before_train(runner)
    for drift in torch.linspace(0, 1, 50).tolist():  # alone, to .73
        spent = ratio_at(router.price, drift)
        assert abs(spent - 0.5) < 0.05
        hold.after_train_iter(runner, 0, outputs=dict(flops_ratio=spent))
    # Resumed, it goes on where it was.
    price, router.price = router.price, 0.0
    again = HoldRatio(backbone, 0.5, None)
    again.before_train(
        SimpleNamespace(iter=50, message_hub=runner.message_hub)
    )
    assert router.price == price
    again.after_train_iter(runner, 0, outputs=dict(flops_ratio=0.6))
    assert router.price > price


def test_the_slope_near_what_costs_least():
    def ratio_at(price):
        return min(1.0, max(0.48, 0.5 - 0.1 * price))

    assert price_slope(ratio_at, 0.5) == pytest.approx(-0.1)


def test_no_slope():
    with pytest.raises(UserError, match='no price changes what'):
        price_slope(lambda price: 0.5, 0.5)
