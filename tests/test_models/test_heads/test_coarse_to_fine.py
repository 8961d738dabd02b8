"""The losses of CF-ViT in mmpretrain."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope

from mmdge.models import CoarseToFineHead
from mmdge.utils import UserError
from tests.small import cf_vit, pictures

pytest.importorskip('mmpretrain')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def samples(num, mixed=False):
    from mmpretrain.structures import DataSample

    scores = torch.rand(num, 5).softmax(-1)
    made = [DataSample().set_gt_label(i % 5) for i in range(num)]
    if mixed:
        for sample, score in zip(made, scores, strict=True):
            sample.set_gt_score(score)
    return made


@pytest.mark.parametrize('mixed', [False, True])
def test_the_final_logits_teach_the_coarse_ones(mixed):
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    head = CoarseToFineHead(loss=loss, coarse_weight=0.5)
    coarse, final = torch.randn(2, 4, 5).unbind()
    coarse.requires_grad_(), final.requires_grad_()
    losses = head.loss((coarse, final), samples(4, mixed))
    assert set(losses) == {'loss', 'loss_coarse'}
    p = final.softmax(-1)
    expected = (p * (p.log() - coarse.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(losses['loss_coarse'], 0.5 * expected)
    losses['loss_coarse'].backward()
    assert coarse.grad.abs().max() > 0 and final.grad is None


def test_a_classifier_trains_and_tests_with_exits():
    from mmpretrain.registry import MODELS

    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmdge.CFViT',
                arch=dict(
                    embed_dims=16,
                    num_layers=2,
                    num_heads=2,
                    feedforward_channels=32,
                ),
                patch_size=8,
                num_classes=5,
                pretrain_img_size=64,
            ),
            head=dict(type='mmdge.CoarseToFineHead', topk=(1, 3)),
        )
    )
    x = pictures(3, 64, 64)
    losses = model(x, samples(3), mode='loss')
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    predictions = model.eval()(x, samples(3), mode='predict')
    _, final = model.backbone(x)
    for found, logits in zip(predictions, final, strict=True):
        torch.testing.assert_close(found.pred_score, F.softmax(logits, -1))
    assert model(x, mode='tensor').shape == (3, 5)


def test_other_outputs_are_refused():
    head = CoarseToFineHead()
    with pytest.raises(UserError, match='set its num_classes'):
        head(cf_vit()(pictures(1, 32, 32)))
    with pytest.raises(UserError, match='coarse_weight must be'):
        CoarseToFineHead(coarse_weight=-1)
