"""What all backbones share: initialisation, and how they are found."""

import pytest
import torch
from mmengine.model import BaseModule

from mmdge.models import DGEPVT, DGEDeiT
from mmdge.models.architectures import backbone_class
from mmdge.models.routing import QuantileRouter
from mmdge.registry import MODELS

RANKED = dict(type='QuantileRouter', score='learned')


class Host(BaseModule):
    """A host whose init_cfg reaches into the backbone, as mmpretrain's do."""

    def __init__(self, backbone):
        super().__init__(dict(type='TruncNormal', layer='Linear', std=0.02))
        self.backbone = backbone


@pytest.mark.parametrize('backbone', [DGEPVT, DGEDeiT])
def test_a_hosts_init_cfg_leaves_the_routers_alone(backbone):
    host = Host(backbone('tiny'))
    host.init_weights()
    for router in host.backbone.routers:
        finest = router.gate.bias.softmax(0)[0].item()
        assert finest == pytest.approx(0.95)
    ranked = Host(backbone('tiny', routing=RANKED))
    ranked.init_weights()
    for router in ranked.backbone.routers:
        assert router.rank_head.weight[0, -1] == 1
        assert router.rank_head.weight[0, :-1].eq(0).all()
    mlp = host.backbone.get_submodule(
        'block1.0.mlp.fc1' if backbone is DGEPVT else 'blocks.0.mlp.fc1'
    )
    assert mlp.weight.abs().max() <= 2  # and the rest is the host's
    assert torch.isclose(mlp.weight.std(), torch.tensor(0.02), rtol=0.2)


@pytest.mark.parametrize('backbone', [DGEPVT, DGEDeiT])
def test_its_own_init_cfg_does_so_too(backbone):
    init_cfg = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)
    model = backbone('tiny', init_cfg=init_cfg)
    model.init_weights()
    for router in model.routers:
        assert router.gate.bias.softmax(0)[0].item() == pytest.approx(0.95)


def test_weights_are_initialised_once():
    model = DGEPVT('tiny')
    model.init_weights()
    (router, *_) = model.routers
    torch.nn.init.ones_(router.gate.bias)
    model.init_weights()
    assert router.gate.bias.tolist() == [1, 1, 1]


@pytest.mark.parametrize('layouts', [DGEPVT.layouts, ()])
def test_a_file_without_routers_leaves_theirs_as_they_start(layouts, tmp_path):
    class Backbone(DGEPVT):
        """One of which no other's checkpoints are known, or is."""

    Backbone.layouts = layouts
    weights = DGEPVT('tiny', routing='finest').state_dict()
    torch.save(weights, tmp_path / 'static.pth')
    file = dict(type='Pretrained', checkpoint=str(tmp_path / 'static.pth'))
    host = Host(Backbone('tiny', init_cfg=file))
    host.init_weights()
    for router in host.backbone.routers:
        assert router.gate.bias.softmax(0)[0].item() == pytest.approx(0.95)


def test_types_may_be_classes():
    routing = dict(type=QuantileRouter, score='variance')
    config = dict(type=DGEPVT, arch='tiny', routing=routing)
    routers = MODELS.build(config).routers
    assert {type(router) for router in routers} == {QuantileRouter}
    assert backbone_class(config) is DGEPVT
    assert backbone_class(dict(type='mmdge.DGEDeiT')) is DGEDeiT
    assert backbone_class(dict(type='mmdge.SimpleFPN')) is None
    assert backbone_class({}) is None
