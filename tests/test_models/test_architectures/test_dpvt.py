"""DPVT by itself; the rest is in test_contract.py."""

import pytest
import torch
from torch import nn

from mmdge.models import DGEDPVT
from mmdge.models.architectures import DPVT
from tests.small import PVT, dpvt, pictures
from tests.test_models.test_architectures.test_pvt import build as pvt


def test_all_at_the_finest_is_the_static_one():
    model = dpvt().eval()
    for router in model.routers:
        nn.init.zeros_(router.gate.weight)
        router.gate.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0]))
    static = DPVT(PVT, pretrain_img_size=64).eval()
    static.load_state_dict(model.state_dict())
    x = pictures(2, 100, 76)
    for a, b in zip(model(x), static(x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert model.cost.dense.equal(static.cost.dense)


def test_the_mean_is_of_normed_tokens():
    model = dpvt('finest', out_type='avg_featmap', out_indices=3).eval()
    nn.init.normal_(model.norm.weight)
    x = pictures(2, 64, 96)
    (mean,) = model(x)
    model.out_type = 'featmap'
    (last,) = model(x)
    normed = model.norm(last.permute(0, 2, 3, 1))
    torch.testing.assert_close(mean, normed.mean((1, 2)))


@pytest.mark.parametrize(
    'init_cfg', [None, dict(type='Kaiming', layer='Linear')]
)
def test_initialising_linear_layers_leaves_points_on_their_rings(init_cfg):
    model = DGEDPVT(PVT, init_cfg=init_cfg)
    attn = model.block3[0].attn
    ring = attn.offsets.bias.clone()
    nn.init.normal_(attn.offsets.bias)  # as a host that initialises all
    model.init_weights()
    assert attn.offsets.bias.equal(ring) and ring.abs().max() == 4
    assert not attn.offsets.weight.any()
    assert model.block3[0].router.gate.bias.any()


@pytest.mark.parametrize(
    'here, there, message',
    [
        (dpvt, pvt, r'holds a PVT \(official layout\), but .* DGEDPVT;'),
        (pvt, dpvt, r'holds a DPVT \(mmdge layout\), but .* PVT;'),
    ],
)
def test_other_weights_are_refused(here, there, message):
    with pytest.raises(ValueError, match=message):
        here().load_state_dict(there().state_dict())


def test_mistakes_are_named():
    said = "out_type must be 'featmap' or 'avg_featmap', but got 'cls_token'"
    with pytest.raises(ValueError, match=said):
        DPVT(out_type='cls_token')
    with pytest.raises(ValueError, match='arch must give .*sr_ratios'):
        DPVT(dict(PVT, sr_ratios=(8, 4, 2, 1)))
