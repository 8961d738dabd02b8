"""Names there and back; what they mean is tested in test_checkpoint."""

import re

import pytest
import torch

from mmdge.models import DGEPVT, DGEDeiT
from mmdge.models.architectures import LAYOUTS
from mmdge.models.weights import (
    from_ours,
    recognise,
    to_ours,
    unwrap,
)

BY_NAME = {f'{layout.name}-{layout.family}': layout for layout in LAYOUTS}


def weights(family, routing='finest', **kwargs):
    """Entries of a small backbone of ours, no two alike."""
    kwargs = dict(kwargs, routing=routing, pretrain_img_size=64)
    if family == 'PVT':
        arch = dict(
            embed_dims=(16, 32, 40, 64),
            num_layers=(1, 2, 1, 1),
            num_heads=(1, 2, 5, 8),
        )
        model = DGEPVT(arch, **kwargs)
    else:
        arch = dict(embed_dims=48, num_layers=2, num_heads=3)
        model = DGEDeiT(dict(arch, feedforward_channels=96), **kwargs)
    state = model.state_dict()
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in state.items()
    }


@pytest.mark.parametrize('layout', BY_NAME.values(), ids=BY_NAME)
def test_there_and_back(layout):
    dynamic = layout.name in ('vtpack', 'mmdge')
    ours = weights(layout.family, 'learned' if dynamic else 'finest')
    theirs, dropped = from_ours(ours, layout)
    assert not dropped
    assert recognise(theirs, LAYOUTS) is layout
    again = to_ours(theirs, layout)
    splits = [key for key in theirs if key.endswith('.dge.splits')]
    assert bool(splits) == (layout.name == 'vtpack')
    assert all(theirs[key].tolist() == [4, 2, 1] for key in splits)
    assert again.keys() == ours.keys()
    assert all(again[key].equal(ours[key]) for key in ours)


def test_what_a_layout_has_no_place_for():
    ours = weights(
        'PVT',
        dict(type='RandomRouter'),
        with_cls_token=True,
        out_type='cls_token',
    )
    ours['block1.0.router.gate.weight'] = torch.zeros(3, 16)
    ours['head.weight'] = torch.zeros(10, 64)
    theirs, dropped = from_ours(ours, BY_NAME['mmdet-PVT'])
    assert set(dropped) == {
        *('cls_token', 'norm.weight', 'norm.bias', 'head.weight'),
        'block1.0.router.gate.weight',
    }
    # The cls token's position goes with it.
    assert theirs['layers.3.1.0.pos_embed'].equal(ours['pos_embed4'][:, 1:])
    assert all(re.match(r'layers\.\d\.[01]\.', key) for key in theirs)
    # Routers that the official code does not have.
    _, dropped = from_ours(weights('DeiT', 'variance'), BY_NAME['vtpack-DeiT'])
    assert len(dropped) == 8 and all('.router.' in key for key in dropped)


@pytest.mark.parametrize('sides', [(1, 4), (1, 2, 8), (2, 4)])
def test_granularities_of_vtpack(sides):
    ours = weights('DeiT', 'learned', granularities=sides)
    theirs, _ = from_ours(ours, BY_NAME['vtpack-DeiT'])
    expected = [sides[-1] // side for side in sides]
    assert theirs['blocks.1.dge.splits'].tolist() == expected


def test_the_arguments_stay_as_they_are():
    ours = weights('PVT', with_cls_token=True)
    before = dict(ours)
    theirs, _ = from_ours(ours, BY_NAME['mmdet-PVT'])
    to_ours(theirs, BY_NAME['mmdet-PVT'])
    assert ours.keys() == before.keys()
    assert all(ours[key] is before[key] for key in before)


def test_unwrap_names_the_rest():
    state = {'module.backbone.a': 1, 'module.head.b': 2}
    assert unwrap({'state_dict': state}) == ({'a': 1}, ['head.b'])
    assert unwrap({'a': 1, 'epoch': 2}) == ({'a': 1, 'epoch': 2}, [])


@pytest.mark.parametrize(
    'names',
    [
        [],
        ['conv1.weight', 'layer1.0.conv1.weight'],
        ['layers.0.blocks.0.attn.qkv.weight'],  # Swin
        ['layers.0.0.projection.weight', 'layers.0.1.0.attn.sr.weight'],
    ],
)
def test_others_are_not_recognised(names):
    assert recognise(names, LAYOUTS) is None
