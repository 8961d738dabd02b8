"""A frozen backbone sees each image once."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdge.utils import UserError
from tests.small import deit, pictures


def runner(**kwargs):
    """What a hook sees before a training begins."""
    model = nn.ModuleDict(dict(backbone=deit(**kwargs))).train()
    cfg = Config(dict(model=dict(backbone=dict(type='mmdge.DGEDeiT'))))
    return SimpleNamespace(model=model, cfg=cfg)


def test_each_image_is_computed_once(tmp_path):
    from train_head import KeepFeatures

    run = runner(routing='finest', frozen_stages=3)
    backbone, images = run.model['backbone'], pictures(3, 32, 48)
    (expected,), cost = backbone(images), backbone.cost
    hook = KeepFeatures(tmp_path / 'features')
    hook.before_train(run)
    seen = []
    backbone.patch_embed.register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    backbone(images[:2])
    for order in ([0, 1, 2], [2, 0]):
        (found,) = backbone(images[order])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected[order], **ROUNDED)
        assert torch.equal(backbone.cost.dynamic, cost.dynamic[order])
    assert seen == [2, 1]
    # Others go on with the files, unless they have other weights.
    hook.after_train(run)
    hook.before_train(run)
    backbone(images)
    assert seen == [2, 1]
    backbone.eval()
    assert torch.equal(backbone(images)[0], expected)
    hook.after_train(run)
    backbone.train().norm.bias.data += 1
    hook.before_train(run)
    (found,) = backbone(images)
    torch.testing.assert_close(found, expected + 1, **ROUNDED)
    assert seen == [2, 1, 3, 3]


ROUNDED = dict(rtol=1e-3, atol=1e-3)  # to float16


@pytest.mark.parametrize(
    'kwargs',
    [dict(routing='finest'), dict(routing='variance', frozen_stages=3)],
)
def test_what_learns_or_decides_is_no_constant(tmp_path, kwargs):
    from train_head import KeepFeatures

    with pytest.raises(UserError, match='frozen and dense'):
        KeepFeatures(tmp_path).before_train(runner(**kwargs))
