"""The dense twin as teacher: for any host, family and module."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmdge
from mmdge.engine.hooks.distill_hook import LOSSES

PVT = dict(
    type='mmdge.DGEPVT',
    arch=dict(
        embed_dims=(8, 16, 16, 32),
        num_layers=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
    ),
    routing='uniform',
    drop_path_rate=0.0,
)
VIT = dict(
    type='mmdge.DynamicViT',
    arch=dict(
        embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32
    ),
    routing='uniform',  # no noise: two forwards decide alike
    pruning_loc=(1, 2),
    patch_size=8,
    pretrain_img_size=64,
    drop_path_rate=0.0,
)
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@MODELS.register_module()
class DistilledHost(BaseModel):
    """A classifier with the modes of the hosts."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = mmdge.registry.MODELS.build(backbone)
        width = 32 if 'PVT' in backbone['type'] else 16
        self.head = nn.Linear(width, 5)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss_task=logits.sum()) if mode == 'loss' else logits


def started(backbone, targets, **kwargs):
    """A host in training, its hooks attached as a Runner does."""
    torch.manual_seed(0)
    cfg = dict(type='DistilledHost', backbone=backbone)
    model = MODELS.build(cfg)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    cost, hook = mmdge.CostHook(budget=0.5), mmdge.DistillHook(targets)
    runner = SimpleNamespace(
        model=model,
        hooks=[cost, hook],
        cfg=SimpleNamespace(model=cfg),
        **{'iter': 0, **kwargs},
    )
    with DefaultScope.overwrite_default_scope('mmengine'):
        cost.before_run(runner)
        hook.before_train(runner)
    return model.train(), hook, runner


@pytest.mark.parametrize('backbone', [PVT, VIT], ids=['PVT', 'ViT'])
def test_the_teacher_is_the_dense_twin(backbone):
    model, hook, runner = started(backbone, [dict(module='backbone')])
    loss = model(X, mode='loss')['loss_distill_backbone']
    assert loss > 1e-4
    with model.backbone.as_dense_twin(), torch.no_grad():
        taught = model.eval().backbone(X)
    maps = model.train().backbone(X)
    expected = [F.mse_loss(*pair) for pair in zip(maps, taught, strict=True)]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert model.backbone.cost.ratio.max() < 1  # the student still decides
    hook.after_train(runner)
    assert set(model(X, mode='loss')) & {'loss_task', 'loss_budget'}
    assert 'loss_distill_backbone' not in model(X, mode='loss')


def test_the_teacher_stays_as_it_was():
    model, _, _ = started(PVT, [dict(module='head', loss='kl')])
    before = model(X, mode='loss')['loss_distill_head']
    with torch.no_grad():
        model.head.bias += torch.arange(5.0)
    assert model(X, mode='loss')['loss_distill_head'] > 2 * before


def test_classes_by_divergence():
    model, _, _ = started(PVT, [dict(module='head', loss='kl', loss_weight=2)])
    loss = model(X, mode='loss')['loss_distill_head']
    student = model(X)
    with model.backbone.as_dense_twin():
        teacher = model.eval()(X)
    expected = F.kl_div(
        student.log_softmax(1),
        teacher.log_softmax(1),
        log_target=True,
        reduction='batchmean',
    )
    torch.testing.assert_close(loss, 2 * expected)


def test_only_kept_tokens_are_taught():
    target = dict(module='backbone.norm', kept_only=True)
    model, _, _ = started(VIT, [target])
    loss = model(X, mode='loss')['loss_distill_backbone_norm']
    seen = []
    handle = model.backbone.norm.register_forward_hook(
        lambda module, args, output: seen.append(output[:, 1:])
    )
    model.backbone(X)
    kept = model.backbone.cost.maps[-1].share.flatten(1) > 0
    with model.backbone.as_dense_twin():
        model.eval().backbone(X)
    handle.remove()
    assert kept.sum(1).tolist() == [31, 31]  # of 64, .7 * .7
    torch.testing.assert_close(loss, F.mse_loss(*(s[kept] for s in seen)))


def test_relative_errors_are_alike_at_any_scale():
    taught = torch.randn(2, 4, 8, 8) * 5 + torch.arange(4.0)[:, None, None]
    relative = LOSSES['relative']
    error = relative(taught + 0.5, taught)
    torch.testing.assert_close(error, relative(taught * 9 + 4.5, taught * 9))
    means = taught.mean((0, 2, 3), keepdim=True).expand_as(taught)
    torch.testing.assert_close(relative(means, taught), torch.tensor(1.0))
    # Of a single cls token there is no variance.
    assert relative(torch.ones(1, 4), torch.ones(1, 4)) == 0


@pytest.mark.parametrize('backbone', [PVT, VIT], ids=['PVT', 'ViT'])
def test_in_mixed_precision(backbone):
    targets = [
        dict(module='backbone', loss='relative'),
        dict(module='head', loss='kl'),
    ]
    model, _, _ = started(backbone, targets)
    exact = model(X, mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        rounded = model(X, mode='loss')
    losses = [key for key in exact if 'distill' in key]
    assert len(losses) == 2
    for key in losses:
        assert rounded[key].dtype == torch.float32
        torch.testing.assert_close(
            rounded[key], exact[key], rtol=0.2, atol=1e-3
        )
    sum(rounded[key] for key in losses).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_evaluation_has_no_teacher():
    model, _, _ = started(PVT, [dict(module='backbone')])
    assert 'loss_distill_backbone' not in model.eval()(X, mode='loss')


def test_a_teacher_may_be_a_file(tmp_path):
    cfg = dict(type='DistilledHost', backbone=PVT)
    state = MODELS.build(cfg).state_dict()
    state['head.bias'] = torch.arange(5.0)
    torch.save(dict(state_dict=state), tmp_path / 'teacher.pth')
    hook = mmdge.DistillHook(
        [dict(module='head')], teacher=str(tmp_path / 'teacher.pth')
    )
    model = MODELS.build(cfg)
    with torch.no_grad():
        model.head.bias.zero_()
    runner = SimpleNamespace(
        model=model, cfg=SimpleNamespace(model=cfg), iter=7
    )
    hook.before_train(runner)
    assert model.train()(X, mode='loss')['loss_distill_head'] > 1


def test_a_teacher_of_the_backbone_alone(tmp_path):
    """It teaches what the backbone returns, and nothing behind it."""
    cfg = dict(type='DistilledHost', backbone=PVT)
    model, path = MODELS.build(cfg), tmp_path / 'backbone.pth'
    torch.save(model.backbone.state_dict(), path)
    runner = SimpleNamespace(
        model=model, cfg=SimpleNamespace(model=dict(cfg)), iter=0
    )
    model.backbone.dense = True  # so that only other weights would differ
    mmdge.DistillHook(teacher=str(path)).before_train(runner)
    assert model.train()(X, mode='loss')['loss_distill_backbone'] < 1e-10
    hook = mmdge.DistillHook([dict(module='head')], teacher=str(path))
    with pytest.raises(mmdge.utils.UserError, match='cannot teach head'):
        hook.before_train(runner)


def test_a_resumed_training_must_name_its_teacher():
    with pytest.raises(mmdge.utils.UserError, match='give .* teacher='):
        started(PVT, [dict(module='backbone')], iter=10)


@pytest.mark.parametrize(
    'target, said',
    [
        (dict(module='neck'), "no module 'neck'"),
        (dict(module='head', loss='l3'), "but got loss='l3'"),
    ],
)
def test_a_wrong_target_is_named(target, said):
    with pytest.raises(ValueError, match=said):
        started(PVT, [target])


def test_two_losses_of_one_module_add_up():
    both = [dict(module='head'), dict(module='head', loss='kl')]
    alone = [started(PVT, [t])[0](X, mode='loss') for t in both]
    model, _, _ = started(PVT, both)
    torch.testing.assert_close(
        model(X, mode='loss')['loss_distill_head'],
        sum(losses['loss_distill_head'] for losses in alone),
    )


def test_of_cells_larger_than_tokens_none_are_left_out():
    model, _, _ = started(PVT, [dict(module='backbone', kept_only=True)])
    with pytest.raises(mmdge.utils.UserError, match='kept_only is for'):
        model(X, mode='loss')


def test_where_nothing_is_decided_all_tokens_are_taught():
    target = dict(module='backbone', kept_only=True)
    model, _, _ = started(dict(VIT, routing='finest'), [target])
    assert model(X, mode='loss')['loss_distill_backbone'] < 1e-10


def test_no_output_outlives_a_step():
    model, hook, _ = started(PVT, [dict(module='backbone')])
    (seen,) = (
        cell.cell_contents['backbone']
        for handle in hook._handles
        for listener in handle.hooks_dict_ref().values()
        for cell in (getattr(listener, '__closure__', None) or ())
        if isinstance(cell.cell_contents, dict)
        and set(cell.cell_contents) == {'backbone'}
        and isinstance(cell.cell_contents['backbone'], list)
    )
    model(X, mode='loss')
    assert not seen
    with torch.no_grad():  # as in evaluation
        model.eval().backbone(X)
    assert not seen


def test_a_teachers_file_is_looked_at_first(tmp_path):
    hook = mmdge.DistillHook(teacher=str(tmp_path / 'none.pth'))
    with pytest.raises(mmdge.utils.UserError, match='not found'):
        hook.before_run(None)
