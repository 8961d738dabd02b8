"""The bridge: losses, samples, DDP, and no graph left behind."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import (
    BaseModel,
    BaseTTAModel,
    MMDistributedDataParallel,
)
from mmengine.structures import BaseDataElement
from torch import nn

import mmdge
from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.models import DGEPVT, ComputeMap, Cost, DGEDeiT
from tests.forked import SERVER

ARCH = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
)
QUIET = dict(type='GumbelRouter', noise=False)


class Host(BaseModel):
    """A model with the modes of the hosts."""

    def __init__(self, routing=QUIET, windows=1):
        super().__init__()
        self.backbone = DGEPVT(ARCH, routing=routing, drop_path_rate=0.0)
        self.windows = windows

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for _ in range(self.windows):
            maps = self.backbone(inputs)
        if mode == 'loss':
            return dict(loss_task=sum(m.square().mean() for m in maps))
        if mode == 'predict':
            return [BaseDataElement() for _ in inputs]
        return maps


def attached(**kwargs):
    model = Host(**kwargs)
    hook = mmdge.CostHook(budget=0.5)
    hook.before_run(SimpleNamespace(model=model, hooks=[hook]))
    return model, hook


def test_loss_mode_adds_the_budget_loss():
    model, _ = attached()
    losses = model(torch.rand(2, 3, 64, 64), mode='loss')
    assert set(losses) == {
        'loss_task',
        'loss_budget',
        'flops_ratio',
        'flops_ratio_std',
        'region_spread',
    }
    cost = model.backbone.cost
    ratio = (cost.dynamic.sum() / cost.dense.sum()).item()
    assert losses['flops_ratio'].item() == pytest.approx(ratio)
    assert losses['loss_budget'].item() == pytest.approx((ratio - 0.5) ** 2)
    losses['loss_budget'].backward()
    assert model.backbone.block1[0].router.gate.weight.grad.abs().max() > 0


def test_a_budget_that_no_decision_meets_is_refused(monkeypatch):
    monkeypatch.setattr(DGEPVT, 'least_ratio', lambda self, size: 0.62)
    model, hook = attached()
    model.eval()(torch.rand(2, 3, 64, 64), mode='predict')
    with pytest.raises(ValueError, match='budget=0.5 .* spends 0.62 of'):
        model.train()(torch.rand(2, 3, 64, 64), mode='loss')
    hook.budget, hook._checked = 0.7, False
    model(torch.rand(2, 3, 64, 64), mode='loss')


def test_no_graph_outlives_the_loss():
    model, _ = attached()
    losses = model(torch.rand(2, 3, 64, 64), mode='loss')
    assert not model.backbone.cost.dynamic.requires_grad
    graph = weakref.ref(losses['loss_task'])
    del losses
    gc.collect()
    assert graph() is None


def test_predict_mode_writes_each_images_cost():
    model, _ = attached()
    model.eval()
    x = torch.rand(3, 3, 64, 96)
    samples = model(x, mode='predict')
    for sample, dynamic, dense in zip(
        samples,
        model.backbone.cost.dynamic.tolist(),
        model.backbone.cost.dense.tolist(),
        strict=True,
    ):
        cost = sample.to_dict()['backbone_cost']
        assert (cost['dynamic'], cost['dense']) == (dynamic, dense)
        assert sum(cost['stages_dynamic']) == dynamic
        assert sum(cost['stages_dense']) == dense


def test_several_forwards_of_one_prediction_add_up():
    x = torch.rand(2, 3, 64, 64)
    once, thrice = attached()[0].eval(), attached(windows=3)[0].eval()
    thrice.load_state_dict(once.state_dict())
    for a, b in zip(
        once(x, mode='predict'), thrice(x, mode='predict'), strict=True
    ):
        assert 3 * a.backbone_cost['dynamic'] == b.backbone_cost['dynamic']


def test_tensor_mode_is_left_alone():
    model, _ = attached()
    assert isinstance(model(torch.rand(1, 3, 64, 64))[0], torch.Tensor)


def test_after_run_leaves_the_model_as_it_was():
    model, hook = attached()
    hook.after_run(SimpleNamespace(model=model))
    losses = model(torch.rand(1, 3, 64, 64), mode='loss')
    assert set(losses) == {'loss_task'}


def test_routers_without_parameters_only_log():
    model, _ = attached(routing='variance')
    losses = model(torch.rand(1, 3, 64, 64), mode='loss')
    assert not losses['loss_budget'].requires_grad


def test_a_copy_of_the_model_reads_its_own_backbone():
    model, _ = attached()
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        other.backbone.block1[0].router.gate.bias.copy_(
            torch.tensor([-9.0, -9.0, 9.0])
        )
    x = torch.rand(1, 3, 64, 64)
    (sample,) = other(x, mode='predict')
    assert sample.backbone_cost['dynamic'] == other.backbone.cost.dynamic
    assert model.backbone.cost is None


def test_it_attaches_inside_wrappers():
    class Wrapper(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    model = Host().eval()
    mmdge.CostHook(budget=0.5).attach(Wrapper(module=model))
    (sample,) = model(torch.rand(1, 3, 64, 64), mode='predict')
    assert sample.backbone_cost['dense'] > 0


def test_the_views_of_an_augmented_test_add_up():
    class Merged(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            # Hosts keep the first view's sample, or the last one's.
            return [views[0] for views in data_samples_list]

    small, large = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 96, 96)
    model, hook = attached()
    model.eval()
    alone = [model(x, mode='predict') for x in (small, large)]
    data = dict(inputs=[small, large])
    for _ in range(2):  # a batch begins anew
        hook.before_test_iter(None, 0, data)
        merged = Merged(module=model).test_step(data)
        hook.after_test_iter(None, 0, data, merged)
    for image, sample in enumerate(merged):
        costs = [views[image].backbone_cost for views in alone]
        for key in ('dynamic', 'dense'):
            assert sample.backbone_cost[key] == sum(c[key] for c in costs)
    (again, _) = model(small, mode='predict')
    assert again.backbone_cost == alone[0][0].backbone_cost


class Runner:
    """As much of one as the hook asks for its warnings."""

    def __init__(self, model, hub=None):
        self.model, self.message_hub, self.said = model, hub, []
        self.logger = SimpleNamespace(warning=self.said.append)
        self.iter, self.hooks = 0, []


def metrics(ratio=0.5, std=0.1, spread=0.2):
    return {
        'backbone/FLOPs_ratio': ratio,
        'backbone/FLOPs_ratio_std': std,
        'backbone/region_spread': spread,
    }


@pytest.mark.parametrize('ratio, warned', [(0.55, False), (0.95, True)])
def test_a_ratio_far_from_the_budget_is_said(ratio, warned):
    model, hook = attached()
    runner = Runner(model)
    hook.after_val_epoch(runner, metrics(ratio))
    assert bool(runner.said) == warned


COLLAPSES = {
    'all cells of a block are dense': metrics(1.0, 0.0, 0.0),
    'all cells of a block are computed alike': metrics(0.55, 0.0, 0.0),
    'all images cost the same': metrics(0.55, 0.0005, 0.2),
}


@pytest.mark.parametrize('said', COLLAPSES)
def test_a_collapsed_router_is_said(said):
    model, hook = attached()
    runner = Runner(model)
    hook.after_val_epoch(runner, COLLAPSES[said])
    assert f'routing has collapsed: {said} over the images' in runner.said[0]
    hook.after_val_epoch(runner, metrics())
    hook.after_val_epoch(runner, {})
    assert len(runner.said) == 1 + (COLLAPSES[said] == metrics(1.0, 0.0, 0.0))


def test_a_static_model_has_not_collapsed():
    model, _ = attached(routing='finest')
    hook = mmdge.CostHook(budget=1.0)
    runner = Runner(model)
    hook.before_run(runner)
    hook.after_val_epoch(runner, metrics(1.0, 0.0, 0.0))
    assert not runner.said


@pytest.mark.parametrize(
    'bias, said',
    [
        ((9.0, 0.0, 0.0), 'are dense over the last 200 iterations'),
        ((0.0, 0.0, 9.0), 'are computed alike over the last 200'),
        (None, None),
    ],
)
def test_a_collapse_is_said_while_training(bias, said):
    """With the real hub, fed as MMEngine does it."""
    model, hook = attached(routing=QUIET if bias else 'random')
    for router in model.backbone.routers if bias else ():
        nn.init.zeros_(router.gate.weight)
        router.gate.bias.data = torch.tensor(bias)
    hub = MessageHub(f'test-{bias}')
    runner = Runner(model, hub)
    hook.before_run(runner)
    for runner.iter in range(200):
        losses = model(torch.rand(1, 3, 32, 32), mode='loss')
        for name, value in losses.items():
            hub.update_scalar(f'train/{name}', value)
        warming = runner.iter < 199 and bias
        for router in model.backbone.routers:
            router.train_progress = 0.9 if warming else 1.0
        hook.after_train_iter(runner, runner.iter)
    assert len(runner.said) == bool(said), runner.said
    assert not said or said in runner.said[0]


@pytest.mark.parametrize('budget', [0, -0.5, 1.01, 'half', True, float('nan')])
def test_budget_is_checked(budget):
    with pytest.raises(ValueError, match=r'must be in \(0, 1\], but got'):
        mmdge.CostHook(budget=budget)


def test_a_model_without_a_dynamic_backbone_is_named():
    model = nn.Module()
    model.backbone = nn.Linear(1, 1)
    with pytest.raises(ValueError, match='Module with backbone Linear'):
        mmdge.CostHook(budget=0.5).attach(model)
    model.backbone = nn.ModuleList([DGEPVT(ARCH), DGEPVT(ARCH)])
    with pytest.raises(ValueError, match='but found 2'):
        find_dynamic_backbone(model, 'x')


class TeacherAndStudent(nn.Module):
    """As mmdet's SemiBaseDetector: two models, one of them frozen."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Host(), Host()
        self.teacher.requires_grad_(False)

    def forward(self, x, mode):
        with torch.no_grad():
            self.teacher(x.flip(-1))
        if mode == 'predict':
            return self.teacher(x, mode=mode)
        return self.student(x, mode=mode)


def test_a_teacher_and_its_student_each_count_where_they_work():
    model, x = TeacherAndStudent(), torch.rand(2, 3, 64, 64)
    mmdge.CostHook(budget=0.5).attach(model)
    losses = model(x, mode='loss')
    student, teacher = model.student.backbone, model.teacher.backbone
    ratio = student.cost.dynamic.sum() / student.cost.dense.sum()
    assert losses['flops_ratio'] == pytest.approx(ratio.item())
    assert not student.cost.dynamic.requires_grad
    losses['loss_budget'].backward()
    assert student.block1[0].router.gate.weight.grad is not None
    samples = model.eval()(x, mode='predict')
    for i, sample in enumerate(samples):  # it ran twice
        dense = 2 * teacher.cost.dense[i].item()
        assert sample.backbone_cost['dense'] == dense


def test_decisions_with_targets_have_losses_of_their_own():
    maps = [
        ComputeMap(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]), 8, 'a', None, t)
        for t in (0.5, 0.75)
    ]
    flops = torch.ones(2, dtype=torch.float64)
    cost = Cost(flops, flops, tuple(maps))
    loss = mmdge.CostHook(budget=0.9, loss_weight=2).losses(cost)
    expected = 2 * ((0 + 0.5**2) / 2 + (0.25**2 + 0.25**2) / 2) / 2
    assert loss['loss_budget'] == pytest.approx(expected)


def test_a_frozen_backbone_is_logged_as_well():
    model, _ = attached()
    model.backbone.requires_grad_(False)
    losses = model(torch.rand(2, 3, 64, 64), mode='loss')
    assert 0 < losses['flops_ratio'] <= 1.01


def test_backbones_of_several_families_add_up():
    model = Host()
    model.other = DGEDeiT('tiny', routing='random')
    run = model.forward

    def both(inputs, **kwargs):
        model.other(inputs)
        return run(inputs, **kwargs)

    model.forward = both
    mmdge.CostHook(budget=0.5).attach(model)
    (sample,) = model.eval()(torch.rand(1, 3, 64, 64), mode='predict')
    parts = [model.backbone.cost.dense, model.other.cost.dense]
    assert sample.backbone_cost['dense'] == sum(parts).item()
    assert len(sample.backbone_cost['stages_dense']) == 5


def test_of_several_cost_hooks_the_last_one_counts():
    model = Host()
    base, own = (mmdge.CostHook(budget) for budget in (1.0, 0.5))
    runner = SimpleNamespace(model=model, hooks=[base, own])
    for hook in runner.hooks:
        hook.before_run(runner)
    losses = model(torch.rand(1, 3, 64, 64), mode='loss')
    expected = (losses['flops_ratio'] - 0.5) ** 2
    torch.testing.assert_close(losses['loss_budget'].detach(), expected)


def gradients(model, x):
    losses = model(x, mode='loss')
    (losses['loss_task'] + losses['loss_budget']).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def calibrated(routing):
    """A host whose running quantiles, if any, are set."""
    torch.manual_seed(0)
    model = Host(routing)
    model(torch.rand(4, 3, 64, 64))
    model.zero_grad()
    return model


ROUTINGS = {
    'paper': QUIET,
    'variance': 'variance',
    'ranked': dict(type='QuantileRouter', score='learned'),
}


@pytest.mark.parametrize('name', ROUTINGS)
def test_two_processes_have_the_gradients_of_one(name, tmp_path):
    x = torch.rand(4, 3, 64, 64)
    model = calibrated(ROUTINGS[name])
    mmdge.CostHook(budget=0.5).attach(model)
    expected = gradients(model, x)
    torch.save(x, tmp_path / 'x.pth')
    processes = [
        SERVER.Process(target=run_rank, args=(rank, name, tmp_path))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    ranks = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    for key, grad in expected.items():
        for rank in ranks:
            torch.testing.assert_close(
                rank['grads'][key], grad, rtol=1e-4, atol=1e-6
            )
    for key, buffer in ranks[0]['buffers'].items():
        assert buffer.equal(ranks[1]['buffers'][key]), key


def run_rank(rank, name, folder):
    """What each of the two processes does."""
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=2
    )
    model = MMDistributedDataParallel(
        calibrated(ROUTINGS[name]), device_ids=None, broadcast_buffers=False
    )
    hook = mmdge.CostHook(budget=0.5)
    hook.before_run(SimpleNamespace(model=model, hooks=[hook]))
    grads = gradients(model, torch.load(f'{folder}/x.pth').chunk(2)[rank])
    state = dict(
        grads={n.removeprefix('module.'): g for n, g in grads.items()},
        buffers=dict(model.module.named_buffers()),
    )
    torch.save(state, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()
