"""Label-free adaptation: the dense twin teaches on unlabelled images.

Weights that were trained dense are moved a little, so that the backbone's
outputs are those of before although most cells are computed at a cheaper
candidate. Heads and norms after the backbone stay as they are.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmdge.engine.hooks import relative_error, tensors
from mmdge.models.architectures import Backbone
from mmdge.safe_training import find_latest_checkpoint
from mmdge.utils import UserError, launch

from .images import tested_loader
from .price import find_price, set_price

_STEP = 0.05  # of a ratio, over which the slope of the price is read
_GAIN = 0.2  # part of a batch's miss that is made up for in the next


class Adaptation(BaseModel):
    """A dynamic backbone and its dense twin, frozen, as its teacher.

    In ``loss`` mode it returns the mean over the output maps of
    :func:`relative_error`, and ``flops_ratio``. The backbone stays in
    evaluation mode, which is what it will run in: without noise, DropPath or
    other decisions. Its :meth:`~Backbone.deciding_parts` are not trained.

    Args:
        backbone (Backbone): The student; its weights now are the teacher's.
        preprocessor (nn.Module): The host's, for images as they are tested.
    """

    def __init__(self, backbone: Backbone, preprocessor: nn.Module) -> None:
        super().__init__(OneByOne(preprocessor))
        # Stages that the training freezes learn from their twin, too.
        self.backbone = backbone.requires_grad_(True)
        for part in backbone.deciding_parts():
            part.requires_grad_(False)
        teacher = copy.deepcopy(backbone).eval().requires_grad_(False)
        teacher.dense = True
        self._teacher = (teacher,)  # a tuple's are not saved

    def init_weights(self) -> None:
        """Nothing: the backbone has its weights, and is calibrated."""

    def train(self, mode: bool = True) -> Adaptation:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, inputs: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        """Losses of preprocessed images ``(B, 3, H, W)``.

        Half of the batches are mirrored.
        """
        if torch.rand(()) < 0.5:
            inputs = inputs.flip(-1)
        with torch.no_grad():
            taught = self._teacher[0](inputs)
        maps = self.backbone(inputs)
        ratio = self.backbone.cost.ratio.mean().float()
        self.backbone.cost = self.backbone.cost.detach()
        errors = [
            relative_error(ours.float(), theirs.float())
            for ours, theirs in zip(
                tensors(maps), tensors(taught), strict=True
            )
        ]
        loss = torch.stack(errors).mean()
        return dict(loss=loss, flops_ratio=ratio.detach())


class OneByOne(nn.Module):
    """Preprocess each image as it is tested, then pad them to one size.

    Args:
        preprocessor (nn.Module): The host's.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        self.preprocessor = preprocessor

    def forward(self, batch: Sequence, training: bool) -> dict[str, Tensor]:
        """Take a list of batches of one image each; labels are let go."""
        images = [self.preprocessor(one, False)['inputs'] for one in batch]
        height, width = (max(i.shape[d] for i in images) for d in (2, 3))
        # With zeros, as all hosts pad.
        padded = [
            F.pad(i, (0, width - i.shape[3], 0, height - i.shape[2]))
            for i in images
        ]
        return dict(inputs=torch.cat(padded))


class HoldRatio(Hook):
    """Hold the mean ratio of FLOPs, by the price, while features move.

    Args:
        backbone (Backbone): Whose routers' price is set.
        ratio (float): To be held.
        slope (float, optional): See :func:`price_slope`. Defaults to None:
            that of the training which is resumed.
    """

    def __init__(
        self, backbone: Backbone, ratio: float, slope: float | None
    ) -> None:
        self.backbone = backbone
        self.ratio = ratio
        self.slope = slope
        self.price = 0.0

    def before_train(self, runner: Any) -> None:
        """Go on from the price of a resumed training."""
        if runner.iter > 0:
            hub = runner.message_hub
            self.slope, self.price = hub.get_info('held_at')
        set_price(self.backbone, self.price)

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Move the price by a part of what the batch spent too much."""
        miss = float(outputs['flops_ratio']) - self.ratio
        self.price -= _GAIN * miss / self.slope
        set_price(self.backbone, self.price)
        runner.message_hub.update_info('held_at', (self.slope, self.price))


def price_slope(ratio_at: Callable[[float], float], ratio: float) -> float:
    """How much the ratio changes with the price, where it is ``ratio``.

    Routers have prices of different units.

    Args:
        ratio_at (Callable): See :func:`ratio_at_price`; at a price of 0 it
            is about ``ratio``.
        ratio (float): Spent.

    Returns:
        float: Negative.

    Raises:
        UserError: If no price changes the ratio.
    """
    for other in (ratio - _STEP, ratio + _STEP):
        try:
            price, spent = find_price(ratio_at, other, tolerance=_STEP / 2)
        except UserError:  # out of reach
            continue
        if price:
            return min((spent - ratio_at(0.0)) / price, -1e-9)
    raise UserError(
        f'no price changes what the backbone spends near ratio={ratio}'
    )


def latest_adaptation(folder: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint from which an adaptation goes on; None to begin.

    Args:
        folder (Path): Where it is written.
        settings (dict): What makes it another one, as JSON holds it.

    Raises:
        UserError: If another was begun there.
    """
    path = folder / 'settings.json'
    latest = find_latest_checkpoint(Config(dict(work_dir=str(folder))))
    if latest is not None and path.is_file():
        before = json.loads(path.read_text())
        changed = [k for k in settings if settings[k] != before.get(k)]
        if changed:
            raise UserError(
                f'{folder} has an adaptation of another '
                f'{", ".join(changed)}; remove it, or name another folder'
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2))
    return latest


def settings_of(
    backbone: Backbone, iters: int, ratio: float, lr: float
) -> dict[str, Any]:
    """What tells two adaptations apart, see :func:`latest_adaptation`."""
    weights = 0
    for parameter in backbone.parameters():
        values = parameter.detach().cpu().numpy()
        weights = zlib.crc32(values.tobytes(), weights)
    return dict(iterations=iters, ratio=ratio, lr=lr, checkpoint=weights)


def adapt(
    cfg: Config,
    model: nn.Module,
    backbone: Backbone,
    iters: int,
    lr: float,
    hold: HoldRatio,
    folder: Path,
    split: str = 'train',
    latest: str | None = None,
) -> None:
    """Train a backbone to return what its dense twin does.

    Batches are as large as in the host's training, images as in its test.
    AdamW without weight decay, a rate that falls to 0 linearly; the config's
    seed, or 0.

    Args:
        cfg (Config): Of the model.
        model (nn.Module): Of a host, with weights; only its backbone changes.
        backbone (Backbone): Of the model; its routers are calibrated.
        iters (int): Iterations of the whole adaptation.
        lr (float): Learning rate at its begin.
        hold (HoldRatio): What holds the amount.
        folder (Path): For checkpoints and logs.
        split (str): Whose images. Defaults to ``'train'``.
        latest (str, optional): Checkpoint to go on from. Defaults to None.
    """
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    loader = tested_loader(cfg, split=split)
    training = cfg.get('train_dataloader') or {}
    workers = training.get('num_workers', 0)
    batches = DataLoader(
        loader.dataset,
        batch_size=training.get('batch_size', 8),
        sampler=InfiniteSampler(loader.dataset, seed=seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=partial(_each, loader.collate_fn),
    )
    checkpoint = dict(
        type='mmdge.SafeCheckpointHook',
        by_epoch=False,
        interval=max(1, iters // 10),
        max_keep_ckpts=1,
    )
    steps = max(1, iters // 20)
    runner = Runner(
        model=Adaptation(backbone, model.data_preprocessor),
        work_dir=str(folder),
        train_dataloader=batches,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=lr, weight_decay=0.0),
            clip_grad=dict(max_norm=1.0),
        ),
        param_scheduler=dict(
            type='LinearLR',
            by_epoch=False,
            start_factor=1.0,
            end_factor=0.0,
            end=iters + 1,
        ),
        default_hooks=dict(
            checkpoint=checkpoint,
            logger=dict(type='LoggerHook', interval=steps),
        ),
        custom_hooks=[hold],
        log_processor=dict(by_epoch=False, window_size=steps),
        env_cfg=cfg.get('env_cfg') or dict(dist_cfg=dict(backend='nccl')),
        randomness=dict(seed=seed),
        default_scope=cfg.get('default_scope') or launch.host_of(cfg),
        load_from=latest,
        resume=latest is not None,
    )
    runner.train()
    backbone.eval()


def _each(collate: Callable, samples: Sequence) -> list:
    """Make each sample a batch of its own."""
    return [collate([sample]) for sample in samples]
