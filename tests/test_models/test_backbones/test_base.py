"""What all dynamic backbones share."""

import pytest
import torch
from mmengine.model import BaseModule

from mmdge.models import DGEPVT, DGEDeiT

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
