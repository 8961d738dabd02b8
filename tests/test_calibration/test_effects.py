"""What coarse cells change in the outputs of hosts' models."""

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from mmdge.calibration import calibrate, collect_effects, set_effect_router
from mmdge.calibration.effects import (
    Effects,
    block_effects,
    compare,
    outputs,
    sigmoid_divergence,
    softmax_divergence,
)
from mmdge.models.routing import EffectRouter
from tests.small import deit, mixed_patch_vit, pictures


class Host(nn.Module):
    """A segmentor, or a detector, or neither."""

    def __init__(self, backbone, head='decode_head'):
        super().__init__()
        self.backbone = backbone
        if head == 'decode_head':
            init_default_scope('mmseg')
            from mmseg.models import FCNHead

            self.decode_head = FCNHead(
                num_convs=0,
                concat_input=False,
                in_channels=24,
                channels=24,
                num_classes=5,
                dropout_ratio=0,
            )
            nn.init.normal_(self.decode_head.conv_seg.weight)
        elif head == 'bbox_head':
            init_default_scope('mmdet')
            from mmdet.models import RetinaHead

            self.bbox_head = RetinaHead(3, 24, stacked_convs=0)
        self.eval()

    def extract_feat(self, x):
        return self.backbone(x)


@pytest.mark.parametrize('head', ['decode_head', 'bbox_head', 'none'])
def test_any_head_counts_and_a_price_meets_the_ratio(head):
    model = Host(mixed_patch_vit(), head)
    images = pictures(6, 96, 128).split(1)
    with torch.no_grad():
        assert all(
            change.abs().max() < 1e-6
            for change in compare(*[outputs(model, images[0])] * 2)
        )
    spent = calibrate(model, images, 4, 0.6)
    assert spent == pytest.approx(0.6, abs=0.02)
    assert model.backbone.router.price == 0


def test_effects_are_where_the_outputs_change():
    model = Host(mixed_patch_vit())
    x = pictures(1, 96, 96)
    seen = collect_effects(model, [x])
    with torch.no_grad():
        coarse = outputs(model, x)  # any routing changes something
    assert seen.effects.shape == (36, 1) and seen.features.shape[0] == 36
    assert seen.effects.min() >= 0 and seen.effects.std() > 0
    assert len(coarse) == 1


def test_padding_is_not_fitted_to():
    x = pictures(2, 96, 96)[1:]  # a quarter of its columns is padding
    seen = collect_effects(Host(mixed_patch_vit()), [x])
    assert len(seen.effects) == 6 * 5


def test_a_linear_effect_is_found():
    torch.manual_seed(0)
    features = torch.randn(4000, 8)
    effects = 3 + features @ torch.randn(8, 1) / 10
    router = EffectRouter(4, (1, 0.25), cell=2)
    assert set_effect_router(router, Effects(features, effects)) > 0.99
    found = features @ router.weight.T + router.bias
    torch.testing.assert_close(
        found, effects / effects.mean(), atol=0.01, rtol=0
    )


def test_effects_of_blocks():
    """A block that adds nothing changes nothing."""
    backbone = deit('error')
    nn.init.zeros_(backbone.blocks[1].attn.proj.weight)
    nn.init.zeros_(backbone.blocks[1].mlp.fc2.weight)
    effects = block_effects(Host(backbone), pictures(2, 64, 64).split(1))
    assert len(effects) == 3 and effects[1] == pytest.approx(0, abs=1e-5)
    assert min(effects[0], effects[2]) > 1e-3


def test_divergences():
    dense, changed = torch.randn(2, 2, 4, 3, 3)
    p, q = dense.softmax(1), changed.softmax(1)
    torch.testing.assert_close(
        softmax_divergence(dense, changed), (p * (p / q).log()).sum(1)
    )
    p, q = dense.sigmoid(), changed.sigmoid()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(
        sigmoid_divergence(dense, changed), expected.sum(1)
    )
