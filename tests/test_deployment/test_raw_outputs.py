"""What is exported, and that a host goes on from it as from its own."""

import copy

import pytest
import torch

from mmdge.deployment import (
    Description,
    RawOutputs,
    common_size,
    digest,
    fit,
    part_of,
    replace_part,
    resized,
)
from mmdge.utils import UserError
from tests.test_deployment.hosts import SIDE, answers, build, data

NAMES = dict(
    retinanet=[
        f'{kind}_{level}'
        for kind in ('cls_scores', 'bbox_preds')
        for level in range(3)
    ],
    mask_rcnn=[
        f'{kind}_{level}'
        for kind in ('map', 'rpn_cls_scores', 'rpn_bbox_preds')
        for level in range(4)
    ],
    fpn=['seg_logits'],
    classifier=['logits'],
    cf_vit=['logits'],
)


def told(model, **more):
    defaults = dict(
        version='0',
        config='config.py',
        scope='model',
        form='dense',
        size=(SIDE, SIDE),
        divisor=1,
        batch=2,
        pads=False,
        weights=digest(model),
        flops=(1e9, 2e9),
    )
    return Description(**{**defaults, **more})


@pytest.mark.parametrize('name', NAMES)
def test_predictions_stay_as_they_are(name):
    """Three images in runs of two, so that the last one is padded."""
    model, batch = build(name), data(name)
    expected = answers(name, model, batch)
    assert any(len(part) for parts in expected for part in parts)
    raw = RawOutputs(copy.deepcopy(model))
    names, sizes = [], []

    def run(images):
        sizes.append(len(images))
        outs = raw.named(images)
        names[:] = outs
        return list(outs.values())

    run(torch.rand(2, 3, SIDE, SIDE))
    assert names == NAMES[name]
    replace_part(model, run, names, told(model))
    found = answers(name, model, batch)
    assert sizes[1:] == [2, 2]
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert model.backbone.cost.dynamic.tolist() == [1e9] * 3
    assert model.backbone.cost.ratio.tolist() == [0.5] * 3


def test_maps_of_any_model():
    """Whose head is none that could be exported."""
    model = build('mask_rcnn')
    batch = data('mask_rcnn')
    expected = answers('mask_rcnn', model, batch)
    raw = RawOutputs(copy.deepcopy(model), 'backbone', with_flops=True)
    names = [*raw.named(torch.rand(1, 3, SIDE, SIDE))]
    assert names == [f'map_{i}' for i in range(4)] + ['backbone_flops']
    replace_part(model, raw, names, told(model, scope='backbone', batch=1))
    found = answers('mask_rcnn', model, batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.allclose, ours, theirs))
    # What the outputs tell goes before what the file tells.
    own = raw.model.backbone.cost
    assert model.backbone.cost.dynamic.tolist() == own.dynamic.tolist() * 3


def test_other_heads_are_named():
    head = torch.nn.Linear(1, 1)
    model = build('classifier')
    model.head = head
    with pytest.raises(UserError, match=r'ImageClassifier.*--scope backbone'):
        part_of(model)
    assert part_of(model, 'backbone').maps


def test_outputs_of_another_model_are_named():
    model = build('classifier')
    replace_part(
        model, lambda x: [torch.rand(2, 5)], ['seg_logits'], told(model)
    )
    with pytest.raises(UserError, match='outputs seg_logits, which are not'):
        model.test_step(data('classifier'))


def test_sizes():
    images = torch.rand(1, 3, 48, 64)
    padded = fit(images, (64, 64), pads=True)
    assert padded.shape[-2:] == (64, 64)
    assert padded[..., :48, :].equal(images) and not padded[..., 48:, :].any()
    assert fit(images, None, False, 16) is images
    assert fit(images, None, True, 32).shape[-2:] == (64, 64)
    with pytest.raises(UserError, match='multiples of 32 .*got 48 x 64'):
        fit(images, None, False, 32)
    for size, pads in (((64, 64), False), ((32, 64), True)):
        found = rf'{size[0]} x {size[1]} .*, but got 48 x 64.*--size 48 64'
        with pytest.raises(UserError, match=found):
            fit(images, size, pads)
    assert resized(images, (32, 32), pads=True).shape[-2:] == (32, 32)
    others = [images, torch.rand(1, 3, 96, 32)]
    assert common_size(others, pads=True) == (96, 64)
    with pytest.raises(UserError, match='from 48 x 64 to 96 x 32'):
        common_size(others, pads=False)


def test_a_digest_knows_the_weights():
    model = build('classifier')
    before = digest(model)
    assert digest(copy.deepcopy(model)) == before
    model.head.fc.bias.data[0] += 1
    assert digest(model) != before
