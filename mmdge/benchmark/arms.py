"""Those that take turns: a dynamic backbone and what is used in its place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmdge.datasets import image_loader
from mmdge.models import share_for_budget
from mmdge.models.backbones import DynamicBackbone
from mmdge.utils import UserError, launch

from .rivals import count_flops, host_backbone, smaller_backbone

# Where each host keeps what it wants to know of an image.
SAMPLES = dict(
    mmdet=('mmdet.structures', 'DetDataSample'),
    mmseg=('mmseg.structures', 'SegDataSample'),
    mmpretrain=('mmpretrain.structures', 'DataSample'),
)
# Kinds of arms besides the dense twin, by what is timed: with random weights,
# with a checkpoint, in training.
INFERENCE = ('dynamic', 'variance', 'host', 'smaller')
CHECKPOINT = ('dynamic', 'host', 'smaller')
TRAINING = ('dynamic', 'sparse', 'paper')


@dataclass
class Arm:
    """One of those that take turns.

    Attributes:
        name (str): Unique.
        kind (str): ``'dense'``, or one of the kinds above.
        backbone (nn.Module): In the mode of what is timed.
        asked (float): Ratio of FLOPs, or price, that was asked for.
        flops (int): Of one image, where the backbone doesn't say itself.
        note (str): For the table.
    """

    name: str
    kind: str
    backbone: nn.Module
    asked: float | None = None
    flops: int | None = None
    note: str = ''

    def ran(self) -> float:
        """Multiply-adds per image of the backbone's last forward."""
        if self.flops is not None:
            return self.flops
        return self.backbone.cost.dynamic.detach().mean().item()


class Subject:
    """What a config describes: a backbone, and the model it is part of.

    Args:
        cfg (Config): With a dynamic backbone in its model.
        checkpoint (str, optional): Weights of the model. Defaults to None:
            random ones, and noise for images.
        whole (bool): Time the whole model. Defaults to False.
        train (bool): Time training steps. Defaults to False.
        num_images (int): Of the validation set, with a checkpoint. Defaults
            to 16.

    Attributes:
        config (dict): Of the backbone.
        model (nn.Module | None): The host's, where it or images are needed.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | None = None,
        whole: bool = False,
        train: bool = False,
        num_images: int = 16,
    ) -> None:
        self.host = cfg.get('default_scope')
        self.trained, self.whole, self.train = bool(checkpoint), whole, train
        self.config = {**cfg.model.backbone, 'init_cfg': None}
        if train:
            self.config['drop_path_rate'] = 0.0
        self.model, self._state, self._pool = None, None, []
        if checkpoint or whole:
            if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
                cfg.model.test_cfg.mode = 'whole'  # sizes are as asked for
            cfg.model.backbone.init_cfg = None  # nothing is downloaded
            self.model = launch.build_model(cfg, checkpoint).cpu()
        if self.model and not checkpoint:
            with _quiet():
                # Or a detector would be sure of everything it proposes.
                self.model.init_weights()
        if checkpoint:
            self._pool = [
                self.model.data_preprocessor(data, False)['inputs']
                for data in image_loader(cfg, number=num_images)
            ]
        source = self.model.backbone if self.model else self.build()
        self._state = source.state_dict()

    @property
    def autocasts(self) -> bool:
        """Whether half precision is autocast, as the hosts do it."""
        return self.train or self.whole

    def build(self, **changes: Any) -> DynamicBackbone:
        """Build the backbone with other settings, and the same weights."""
        backbone = MODELS.build({**self.config, **changes})
        if self._state and 'arch' not in changes:
            own = 'routing' not in changes
            state = {
                key: value
                for key, value in self._state.items()
                if own or '.router.' not in key
            }
            with _quiet():
                backbone.load_state_dict(state, strict=own)
        return backbone.eval()

    def images(
        self, size: tuple[int, int], number: int, turn: int = 0
    ) -> Tensor:
        """The images of one turn, ``(number, C, *size)``, on the CPU."""
        if not self._pool:
            channels = self.config.get('in_channels', 3)
            noise = torch.Generator().manual_seed(0)
            return torch.randn(number, channels, *size, generator=noise)
        indices = range(turn * number, (turn + 1) * number)
        return torch.cat(
            [
                F.interpolate(
                    self._pool[i % len(self._pool)],
                    size,
                    mode='bilinear',
                    antialias=True,
                )
                for i in indices
            ]
        )

    def samples(self, size: tuple[int, int], number: int) -> list:
        """What the host wants to know of each image."""
        module, name = SAMPLES[self.host]
        sample = getattr(import_module(module), name)
        keys = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        info = dict.fromkeys(keys, size)
        return [
            sample(metainfo=dict(info, scale_factor=(1.0, 1.0), img_id=i))
            for i in range(number)
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Let none of many backbones say which weights it loads."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def build_arms(
    subject: Subject,
    size: tuple[int, int],
    kinds: Sequence[str],
    asked: Sequence[float],
    notes: list[str],
) -> Iterator[Arm]:
    """Build the dense twin and what else is asked for.

    Args:
        subject (Subject): With a checkpoint its own routers are used, else
            such as meet the ratios.
        size (tuple[int, int]): Height and width of the images.
        kinds (Sequence[str]): Of those in this module's constants.
        asked (Sequence[float]): Prices with a checkpoint, else ratios.
        notes (list[str]): Gets a sentence for each that can't be built.

    Raises:
        UserError: If a ratio can't be met.
    """
    twin = subject.build(routing='finest', granularities=(1,))
    yield Arm('dense twin', 'dense', twin)
    if 'host' in kinds:
        try:
            host, backbone = host_backbone(twin)
        except (ImportError, ValueError) as error:
            notes.append(f"left out, the host's own: {error}")
        else:
            flops = count_flops(copy.deepcopy(backbone).to('meta'), size)
            name, note = f"{host}'s own", type(backbone).__name__
            yield Arm(name, 'host', backbone, flops=flops, note=note)
    ratios = []
    for wanted in asked:
        if not subject.trained:
            ratios.append(wanted)
            yield from _routed(subject, size, kinds, wanted)
            continue
        backbone = subject.build(price=wanted)
        with torch.inference_mode():
            backbone(subject.images(size, 4))
        ratios.append(backbone.cost.ratio.mean().item())
        if 'dynamic' in kinds:
            yield Arm(f'price {wanted:g}', 'dynamic', backbone, wanted)
    if 'smaller' in kinds and subject.whole:
        notes.append('left out, smaller: the neck takes other channels')
    elif 'smaller' in kinds:
        for ratio in ratios:
            config = smaller_backbone(subject.config, ratio, size)
            note = '{embed_dims} x {num_layers}'.format(**config['arch'])
            name, backbone = f'smaller {ratio:.3g}', subject.build(**config)
            yield Arm(name, 'smaller', backbone, ratio, note=note)


def _routed(
    subject: Subject, size: tuple[int, int], kinds: Sequence[str], ratio: float
) -> Iterator[Arm]:
    """Build those that meet a ratio by their shares of granularities."""
    try:
        share = share_for_budget(subject.config, ratio, size)
    except ValueError as error:
        raise UserError(str(error)) from error
    routings = dict(
        dynamic=dict(type='RandomRouter', share=share),
        variance=dict(type='QuantileRouter', share=share),
        sparse='learned',
        paper='learned',
    )
    for kind in (kind for kind in routings if kind in kinds):
        backbone = subject.build(
            routing=routings[kind], sparse_training=kind != 'paper'
        )
        flops = None
        if kind in ('sparse', 'paper'):
            _fix_shares(backbone, share)
        if kind == 'paper':  # computes all granularities
            # Autocast, which routers switch off, knows no meta device.
            flops = count_flops(backbone.train(), size)
        name = 'random' if kind == 'dynamic' else kind
        yield Arm(f'{name} {ratio:g}', kind, backbone, ratio, flops)


def _fix_shares(backbone: DynamicBackbone, share: Sequence[float]) -> None:
    """Let the noise of learned routers give the shares, on any image."""
    log_share = torch.tensor(share).clamp(min=1e-9).log()
    for router in backbone.routers:
        nn.init.zeros_(router.gate.weight)
        with torch.no_grad():
            router.gate.bias.copy_(log_share)
