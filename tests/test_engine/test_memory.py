"""Memory stays flat: no graph and no cost record is kept alive."""

import gc
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from mmdge.models import DGEPVT, Cost

ARCH = dict(
    embed_dims=(8, 8, 8, 8), num_layers=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
)
STAGES = (0, 1)
STEPS = 2000


class Host(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = DGEPVT(ARCH, out_indices=STAGES, drop_path_rate=0.1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.backbone(inputs)
        if mode == 'loss':
            return dict(loss_task=sum(m.square().mean() for m in maps))
        return [BaseDataElement() for _ in inputs]


class Noise(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, 32, 32))


class Watch(Hook):
    """Note what is alive after a quarter of the steps, and after all."""

    def __init__(self):
        self.seen, self.evaluated = {}, 0

    def look(self, mode, step):
        if step + 1 in (STEPS // 4, STEPS):
            gc.collect()
            alive = [type(thing) for thing in gc.get_objects()]
            self.seen.setdefault(mode, []).append(
                (
                    # Pages of the process, in MiB.
                    int(Path('/proc/self/statm').read_text().split()[1])
                    * 4
                    / 1024,
                    sum(issubclass(kind, Tensor) for kind in alive),
                    sum(kind is Cost for kind in alive),
                )
            )

    def after_train_iter(self, runner, batch_idx, **kwargs):
        self.look('train', runner.iter)

    def after_val_iter(self, runner, batch_idx, **kwargs):
        self.look('val', self.evaluated)
        self.evaluated += 1


@pytest.mark.slow
def test_2000_iterations_and_evaluations(tmp_path):
    loader = dict(
        collate_fn=dict(type='default_collate'),
        batch_size=1,
        num_workers=0,
    )
    watch = Watch()
    Runner(
        Host(),
        str(tmp_path),
        train_dataloader=dict(
            loader,
            dataset=Noise(STEPS),
            sampler=dict(type='InfiniteSampler', shuffle=False),
        ),
        # In a hundred evaluations of 20 images.
        train_cfg=dict(by_epoch=False, max_iters=STEPS, val_interval=20),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        val_dataloader=dict(
            loader,
            dataset=Noise(20),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='mmdge.BackboneFLOPs'),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=500),
            checkpoint=dict(
                type='mmdge.SafeCheckpointHook',
                by_epoch=False,
                interval=500,
                max_keep_ckpts=1,
            ),
        ),
        custom_hooks=[dict(type='mmdge.CostHook', budget=0.5), watch],
        randomness=dict(seed=0),
        experiment_name=f'{tmp_path.name}',
    ).train()
    assert watch.seen.keys() == {'train', 'val'}
    for mode, ((mib, tensors, costs), end) in watch.seen.items():
        assert end[0] - mib < 8, mode
        assert end[1] - tensors < 50, mode
        assert end[2] <= costs < 20, mode
