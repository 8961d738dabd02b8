"""The host's own backbones, and smaller ones of equal FLOPs."""

import copy

import pytest
import torch

from mmdge.benchmark.rivals import count_flops, host_backbone, smaller_backbone
from mmdge.models import DGEPVT, DGEDeiT
from mmdge.registry import MODELS

PVT = dict(
    type='mmdge.DGEPVT',
    arch=dict(
        embed_dims=(16, 32, 80, 128),
        num_layers=(1, 2, 3, 1),
        num_heads=(1, 2, 5, 8),
    ),
)
DEIT = dict(
    type='mmdge.DGEDeiT',
    arch=dict(
        embed_dims=128,
        num_layers=6,
        num_heads=4,
        feedforward_channels=384,
    ),
)
SIZE = (64, 96)


@pytest.mark.parametrize(
    ('config', 'changes'),
    [
        (PVT, dict()),
        (PVT, dict(out_indices=(0, 2), in_channels=4)),
        (PVT, dict(pretrain_img_size=250)),
        (DEIT, dict()),
        (DEIT, dict(out_indices=(1, 3), patch_size=8)),
        (DEIT, dict(distilled=True, out_type='cls_token')),
        (DEIT, dict(final_norm=False, pretrain_img_size=100)),
    ],
)
def test_the_hosts_own_gives_the_same_and_costs_the_same(config, changes):
    twin = MODELS.build(dict(config, routing='finest', **changes)).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    name, host = host_backbone(twin)
    assert name in type(host).__module__
    x = torch.rand(2, twin.in_channels, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            tuple(host(x)), twin(x), atol=1e-4, rtol=1e-4
        )
    flops = count_flops(copy.deepcopy(host).to('meta'), SIZE)
    assert flops == twin.cost.dense[0]


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (DGEPVT('tiny', routing='finest', with_cls_token=True), 'cls_token'),
        (
            DGEPVT(
                dict(
                    num_layers=(1, 1, 1, 1),
                    embed_dims=(8, 8, 8, 8),
                    num_heads=(1, 2, 1, 1),
                ),
                routing='finest',
            ),
            'heads of several widths',
        ),
        (torch.nn.Linear(1, 1), 'no host has a counterpart of Linear'),
    ],
)
def test_what_the_host_does_not_have(backbone, message):
    with pytest.raises(ValueError, match=message):
        host_backbone(backbone)


@pytest.mark.parametrize(
    ('config', 'size', 'ratio'),
    [
        (dict(type='mmdge.DGEPVT', arch='small'), (800, 1216), 0.45),
        (dict(type='mmdge.DGEPVT', arch='tiny'), (256, 256), 0.6),
        (dict(type='mmdge.DGEDeiT', arch='small'), (512, 512), 0.4),
        (dict(type='mmdge.DGEDeiT', frozen_stages=9), (64, 64), 0.3),
    ],
)
def test_a_smaller_one_has_the_flops_asked_for(config, size, ratio):
    with torch.device('meta'):
        full = MODELS.build(dict(config, routing='finest'))
        small = MODELS.build(smaller_backbone(config, ratio, size))
    assert type(small) is type(full)
    found = count_flops(small, size) / count_flops(full, size)
    assert found == pytest.approx(ratio, rel=0.06)
    if isinstance(full, DGEPVT):
        for key in ('num_layers', 'embed_dims'):
            pairs = zip(small.arch[key], full.arch[key], strict=True)
            assert all(1 <= a <= b for a, b in pairs)
        heads = zip(
            small.arch['embed_dims'], small.arch['num_heads'], strict=True
        )
        assert all(dims % (8 * n) == 0 for dims, n in heads)
    else:
        expansions = [
            model.arch['feedforward_channels'] / model.arch['embed_dims']
            for model in (small, full)
        ]
        assert expansions[0] == expansions[1]


def test_outputs_move_with_the_depth():
    config = dict(type='mmdge.DGEDeiT', arch='tiny', out_indices=(5, 11))
    small = DGEDeiT(
        **{
            key: value
            for key, value in smaller_backbone(config, 0.3, SIZE).items()
            if key != 'type'
        }
    )
    assert len(small.out_indices) == 2
    assert small.out_indices[-1] == len(small.blocks) - 1
