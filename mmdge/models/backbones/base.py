"""What every dynamic backbone has in common."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..cost import Cost
from ..routing import Router


class DynamicBackbone(BaseModule):
    """Base of the dynamic backbones: a cost, routers, frozen stages.

    Attributes:
        cost (Cost | None): What the last forward computed; the one thing a
            backbone remembers between calls.
    """

    cost: Cost | None = None
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
    def _check_img_size(pretrain_img_size: int, least: int) -> None:
        if not isinstance(pretrain_img_size, int) or pretrain_img_size < least:
            raise ValueError(
                'pretrain_img_size, the side of the images, must be an '
                f'integer of at least {least}, but got {pretrain_img_size!r}.'
            )

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

    def content(self, x: Tensor) -> Tensor | None:
        """Where images ``(B, C, H, W)`` are no padding, ``(B, H, W)``, bool.

        The hosts pad with zeros. None if nothing is routed.
        """
        return x.detach().ne(0).any(1) if self.routers else None

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

        A host's initialisation of all its linear layers comes before, and
        would leave the routers with logits of zero.
        """
        for router in self.routers:
            router.reset_parameters()
        super().init_weights()

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
