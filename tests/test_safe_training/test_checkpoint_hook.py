"""Checkpoints that nothing is lost between; tests/test_tools/test_killed.py
has the trainings that are killed."""

import shutil
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import nn

from mmdge import SafeCheckpointHook
from mmdge.safe_training import (
    atomic_backend,
    read_checkpoint,
    use_safe_loading,
)
from mmdge.utils import UserError


class Model(BaseModel):
    """Learns noise: its weights tell which random numbers were drawn."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='loss'):
        noise = torch.randn(1, 1)
        if mode == 'predict':
            return [noise]
        return dict(loss=self.linear(noise).square().mean())


@METRICS.register_module()
class Step(BaseMetric):
    """Grows from one evaluation to the next."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Step.count += 1
        return dict(step=Step.count, other=-Step.count)


@pytest.fixture
def train(tmp_path):
    """A function that trains; what it takes is the hook's or the loop's."""
    Step.count = 0
    use_safe_loading()  # with which older MMEngines resume at all
    names = iter(range(100))

    def run(
        epochs, hooks=(), val=True, resume=False, load_from=None,
        work_dir=tmp_path, batch_size=1, **kwargs,
    ):  # fmt: skip
        torch.manual_seed(0)
        loader = dict(
            dataset=[dict(inputs=torch.zeros(1))] * 2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            batch_size=batch_size,
            num_workers=0,
        )
        evaluation = dict(
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=dict(type='Step'),
        )
        runner = Runner(
            Model(),
            str(work_dir),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(type='mmdge.SafeCheckpointHook', **kwargs)
            ),
            custom_hooks=list(hooks),
            resume=resume,
            load_from=load_from,
            randomness=dict(seed=0),
            experiment_name=f'{tmp_path.name}-{next(names)}',
            **(evaluation if val else {}),
        )
        runner.train()
        return runner.model.linear.weight.item()

    return run


def checkpoints(folder):
    return sorted(path.name for path in Path(folder).glob('*.pth*'))


@pytest.mark.parametrize('kept', [1, 2])
def test_the_oldest_is_removed_after_the_next_is_there(
    kept, train, tmp_path, monkeypatch
):
    before = []
    put = atomic_backend.AtomicBackend.put

    def spy(self, obj, path):
        before.append(checkpoints(tmp_path))
        put(self, obj, path)

    monkeypatch.setattr(atomic_backend.AtomicBackend, 'put', spy)
    train(4, val=False, interval=1, max_keep_ckpts=kept)
    names = [f'epoch_{i}.pth' for i in range(1, 5)]
    assert before == [names[max(0, i - kept) : i] for i in range(4)]
    assert checkpoints(tmp_path) == names[-kept:]
    # Resumed, it goes on counting.
    train(6, val=False, resume=True, interval=1, max_keep_ckpts=kept)
    assert checkpoints(tmp_path) == ['epoch_5.pth', 'epoch_6.pth'][-kept:]


def test_all_are_kept(train, tmp_path):
    train(3, val=False, interval=1)
    assert len(checkpoints(tmp_path)) == 3


def test_an_evaluation_changes_nothing(train):
    assert train(3, interval=1) == train(3, val=False, interval=1)


# MMEngine guesses it from names that it knows.
RULE = dict(rule='greater')


class Stop(Hook):
    def before_train_epoch(self, runner):
        if runner.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize('best', [None, 'step'])
def test_resuming_draws_the_same_numbers_and_evaluates(best, train, tmp_path):
    whole = train(4, interval=1, save_best=best, **RULE)
    evaluations = Step.count
    for path in tmp_path.glob('*.pth'):
        path.unlink()
    Step.count = 0
    with pytest.raises(KeyboardInterrupt):
        train(4, [Stop()], interval=1, save_best=best, **RULE)
    assert Step.count == 2
    assert train(4, resume=True, interval=1, save_best=best, **RULE) == whole
    # That of epoch 2 is made again, in case it had been cut off; where the
    # checkpoint was saved again as the best, it had not.
    assert Step.count == evaluations + (best is None)
    found = [n for n in checkpoints(tmp_path) if n.startswith('best')]
    assert found == (['best_step_epoch_4.pth'] if best else [])
    for name in found:  # which nobody resumes from
        assert 'random_states' not in read_checkpoint(tmp_path / name)


def test_weights_alone_start_a_training_of_its_own(train, tmp_path):
    alone = train(2, val=False, interval=-1, save_last=False)
    path = tmp_path / 'other' / 'epoch_1.pth'
    train(1, val=False, interval=1)
    path.parent.mkdir()
    (tmp_path / 'epoch_1.pth').rename(path)
    checkpoint = read_checkpoint(path)
    (states,) = checkpoint['random_states']
    assert set(states) >= {'python', 'numpy', 'torch'}
    torch.manual_seed(0)
    checkpoint['state_dict'] = Model().state_dict()  # those it began with
    torch.save(checkpoint, path)
    assert train(2, val=False, interval=-1, load_from=str(path)) == alone


def test_the_best_is_there_until_the_next_is(train, tmp_path, monkeypatch):
    put, seen = atomic_backend.AtomicBackend.put, []

    def spy(self, obj, path):
        seen.append([n for n in checkpoints(tmp_path) if 'best' in n])
        put(self, obj, path)

    monkeypatch.setattr(atomic_backend.AtomicBackend, 'put', spy)
    train(3, interval=1, save_best='step', **RULE)
    # Each epoch's checkpoint, the best, and that epoch's again.
    one, two, three = (f'best_step_epoch_{i}.pth' for i in (1, 2, 3))
    assert seen[:4] == [[], [], [one], [one]]
    assert seen[4] == [one] and [two] in seen and three not in seen[-2]
    assert [n for n in checkpoints(tmp_path) if 'best' in n] == [three]


@pytest.mark.parametrize('best', ['step', ['step', 'other']])
def test_a_copy_leaves_the_best_of_the_original(best, train, tmp_path):
    rules = ['greater'] * (1 if best == 'step' else 2)
    kwargs = dict(interval=1, save_best=best, rule=rules)
    original = tmp_path / 'original'
    train(2, work_dir=original, **kwargs)
    before = checkpoints(original)
    assert 'best_step_epoch_2.pth' in before
    shutil.copytree(original, tmp_path / 'copy')
    Step.count = 5
    train(3, work_dir=tmp_path / 'copy', resume=True, **kwargs)
    assert checkpoints(original) == before
    found = [n for n in checkpoints(tmp_path / 'copy') if 'best_step' in n]
    assert found == ['best_step_epoch_3.pth']


def test_what_is_written_under_the_same_name_stays(train, tmp_path):
    train(
        4, val=True, interval=1, filename_tmpl='latest.pth', max_keep_ckpts=2,
        save_best='step', **RULE,
    )  # fmt: skip
    assert checkpoints(tmp_path) == ['best_step_latest.pth', 'latest.pth']


def test_an_evaluation_is_repeated_though_the_epochs_are_shorter(
    train, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        train(4, [Stop()], interval=1)
    made = Step.count
    train(3, resume=True, interval=1, batch_size=2)
    # That of the second epoch, and of the third.
    assert Step.count == made + 2


def test_the_last_evaluation_can_be_cut_off(train, tmp_path, monkeypatch):
    kwargs = dict(interval=1, save_best='step', **RULE)
    train(2, work_dir=tmp_path / 'whole', **kwargs)
    compute = Step.compute_metrics

    def cut(self, results):
        if Step.count == 1:
            raise KeyboardInterrupt
        return compute(self, results)

    Step.count = 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, 'compute_metrics', cut)
        train(2, work_dir=tmp_path / 'cut', **kwargs)
    train(2, work_dir=tmp_path / 'cut', resume=True, **kwargs)
    whole, cut = (
        read_checkpoint(tmp_path / name / 'epoch_2.pth')
        for name in ('whole', 'cut')
    )
    assert whole['evaluated'] and cut['evaluated']
    scores = [
        c['message_hub']['runtime_info']['best_score'] for c in (whole, cut)
    ]
    assert scores == [2, 2]


def test_processes_that_resume_apart_end(train, tmp_path, monkeypatch):
    train(1, val=False, interval=1)
    monkeypatch.setattr(
        'mmdge.safe_training.checkpoint_hook.all_gather_object',
        lambda own: [own, (0, 0)],
    )
    with pytest.raises(UserError, match='resume from different .*same work_'):
        train(2, val=False, resume=True, interval=1)


def test_another_number_of_processes_is_told(train, tmp_path, capsys):
    train(1, val=False, interval=1)
    path = tmp_path / 'epoch_1.pth'
    checkpoint = read_checkpoint(path)
    checkpoint['random_states'] *= 2
    torch.save(checkpoint, path)
    capsys.readouterr()
    train(2, val=False, resume=True, interval=1)
    said = ''.join(capsys.readouterr())
    assert 'has random states for 2 processes and there are 1' in said


def test_where_files_go_is_up_to_the_config(train, tmp_path):
    hook = SafeCheckpointHook(backend_args=dict(backend='local'))
    assert hook.backend_args == dict(backend='local')
    train(1, val=False, interval=1, out_dir=str(tmp_path / 'other'))
    assert checkpoints(tmp_path / 'other' / tmp_path.name) == ['epoch_1.pth']
