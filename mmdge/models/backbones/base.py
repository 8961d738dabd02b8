"""What every dynamic backbone has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from mmdge.registry import find_class
from mmdge.utils import checks

from ..cost import Cost
from ..routing import Router
from ..weights import Layout, load


class DynamicBackbone(BaseModule):
    """Base of the dynamic backbones: a cost, routers, frozen stages.

    Attributes:
        cost (Cost | None): What the last forward computed; the one thing a
            backbone remembers between calls.
        layouts (tuple[Layout, ...]): Whose checkpoints it loads.
    """

    cost: Cost | None = None
    layouts: tuple[Layout, ...] = ()
    arch_zoo: dict[str, dict] = {}
    in_channels: int = 3

    @classmethod
    def _look_up(cls, arch: str | dict) -> dict:
        """Settings of an architecture by name; a dict passes."""
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                allowed = ', '.join(repr(name) for name in cls.arch_zoo)
                raise ValueError(
                    f'arch={arch!r} is unknown; allowed are {allowed}, or a '
                    'dict.'
                )
            arch = cls.arch_zoo[arch]
        if not isinstance(arch, dict):
            raise ValueError(f'arch must be a name or a dict, not {arch!r}.')
        return arch

    @staticmethod
    def _check_out_type(out_type: str) -> None:
        if out_type not in ('featmap', 'cls_token'):
            raise ValueError(
                "out_type must be 'featmap' or 'cls_token', but got "
                f'{out_type!r}.'
            )

    @staticmethod
    def _check_img_size(
        pretrain_img_size: int | Sequence[int], least: int
    ) -> tuple[int, int]:
        """Bring an image's side, or height and width, to the latter."""
        size = pretrain_img_size
        size = (size, size) if isinstance(size, int) else size
        if (
            not isinstance(size, (list, tuple))
            or len(size) != 2
            or not all(isinstance(s, int) and s >= least for s in size)
        ):
            raise ValueError(
                'pretrain_img_size, the side of the images or (height, '
                f'width), must be an integer of at least {least}, or two, '
                f'but got {pretrain_img_size!r}.'
            )
        return tuple(size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(B, 3, H, W)`` to ``(B, C_i, H_i, W_i)``; set ``cost``."""
        raise NotImplementedError

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` keeps from training."""
        return []

    def check_images(self, x: Tensor) -> None:
        """Raise a ValueError unless ``x`` is ``(B, in_channels, H, W)``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'expected images of shape (B, {self.in_channels}, H, W), '
                f'but got {tuple(x.shape)}.'
            )

    def content(self, x: Tensor, side: int) -> Tensor | None:
        """Where images ``(B, C, H, W)`` are no padding, in cells of pixels.

        Padding is what is 0 in all channels: the hosts pad with zeros, after
        they have normalised.

        Args:
            x (Tensor): Images.
            side (int): Side of a cell in pixels.

        Returns:
            Tensor | None: ``(B, ceil(H / side), ceil(W / side))``, 1 where a
            cell holds any of the image, else 0. None if nothing is routed.
        """
        if not any(isinstance(module, Router) for module in self.modules()):
            return None
        pixels = x.detach().ne(0).any(1, keepdim=True).float()
        return F.max_pool2d(pixels, side, ceil_mode=True)[:, 0]

    @property
    def routers(self) -> list[Router]:
        """The routers of all blocks that route."""
        return [m for m in self.modules() if isinstance(m, Router)]

    def anneal(self, progress: float) -> None:
        """Move the routers between dense and their own target, in training.

        Evaluation always uses the target.

        Args:
            progress (float): 0: every region finest; 1: the routers' shares.
                A router that learns its amount (the paper's) ignores it.
        """
        for router in self.routers:
            router.train_progress = progress

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the routers in their own way.

        An initialisation of all linear layers, the host's before or that of
        ``init_cfg``, would leave the routers with logits of zero. A file of
        weights is looked at first, because MMEngine runs what code it may
        carry. As everywhere in MMEngine, only the first call does anything.

        Raises:
            UserError: If the file is missing, broken, not safe or no fit.
        """
        if self._is_init:
            return
        configs = self.init_cfg or []
        configs = [configs] if isinstance(configs, dict) else configs
        kinds = ('Pretrained', PretrainedInit)
        files = [config for config in configs if config['type'] in kinds]
        for file in files:
            checks.check_checkpoint(
                file['checkpoint'], prefix=file.get('prefix')
            )
        self._reset_routers()
        super().init_weights()
        if configs and not files:
            self._reset_routers()

    def _reset_routers(self) -> None:
        for router in self.routers:
            router.reset_parameters()

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """How the entries begin of what comes after the last output."""
        return ()

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Grid and interpolation of each position embedding."""
        return {}

    def routers_by_name(self) -> dict[str, Router]:
        """The routers of all blocks that route."""
        modules = self.named_modules()
        return {path: m for path, m in modules if isinstance(m, Router)}

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args
    ) -> None:
        """Load what :func:`fit` makes of the entries below ``prefix``."""
        if self.layouts:
            load(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _init_parameters(self) -> None:
        """Initialise as the official PVT and DeiT do."""
        for name, parameter in self.named_parameters():
            if name.startswith(('pos_embed', 'cls_token', 'dist_token')):
                nn.init.trunc_normal_(parameter, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and '.router.' not in name:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> DynamicBackbone:
        """Set the mode; frozen stages stay in eval mode.

        Returns:
            DynamicBackbone: Itself.
        """
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
            for child in module.modules():
                # Noise, warm-up and remembered scores are no parameters.
                if isinstance(child, Router):
                    child.train(mode)
        return self

    def __getstate__(self) -> dict:
        """Copies and pickles start without a cost, which may hold a graph."""
        return {**self.__dict__, 'cost': None}


def dynamic_class(config: Mapping) -> type[DynamicBackbone] | None:
    """The dynamic backbone that a config builds; None if it is another."""
    kind = find_class(config['type']) if 'type' in config else None
    dynamic = isinstance(kind, type) and issubclass(kind, DynamicBackbone)
    return kind if dynamic else None


def check_granularities(
    granularities: Sequence, num_stages: int
) -> list[tuple[int, ...]]:
    """Bring ``granularities`` to one valid tuple per stage.

    Raises:
        ValueError: If a set isn't ascending, or a member doesn't divide the
            last one.
    """
    if not _is_set(granularities):
        per_stage = granularities
        if (
            not isinstance(granularities, (list, tuple))
            or len(granularities) != num_stages
            or not all(_is_set(candidates) for candidates in granularities)
        ):
            raise ValueError(
                f'granularities={granularities!r} must be one set of '
                f'integers, e.g. (1, 2, 4), or {num_stages}, one per stage.'
            )
    else:
        per_stage = [granularities] * num_stages
    for candidates in per_stage:
        if (
            list(candidates) != sorted(set(candidates))
            or candidates[0] < 1
            or any(candidates[-1] % side for side in candidates)
        ):
            raise ValueError(
                f'granularities={tuple(candidates)} must be positive and '
                'ascending, and each must divide the last, e.g. (1, 2, 4).'
            )
    return [tuple(int(side) for side in sides) for sides in per_stage]


def _is_set(candidates: object) -> bool:
    """Whether this is a non-empty sequence of integers."""
    return (
        isinstance(candidates, (list, tuple))
        and len(candidates) > 0
        and all(
            isinstance(side, Integral) and not isinstance(side, bool)
            for side in candidates
        )
    )


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of ``depth`` blocks, rising linearly from 0 to ``rate``."""
    return [rate * n / max(1, depth - 1) for n in range(depth)]


def check_out_indices(
    out_indices: int | Sequence[int], num: int
) -> tuple[int, ...]:
    """Bring ``out_indices`` to ascending, non-negative indices."""
    given = [out_indices] if isinstance(out_indices, int) else out_indices
    indices = []
    if isinstance(given, (list, tuple, range)):
        indices = [
            i + num if isinstance(i, int) and i < 0 else i for i in given
        ]
    if not indices or indices != sorted(set(indices) & set(range(num))):
        raise ValueError(
            f'out_indices={out_indices!r} must be ascending and among 0 to '
            f'{num - 1}, or negative, counted from the end.'
        )
    return tuple(indices)
