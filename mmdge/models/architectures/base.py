"""What every backbone has in common: weights, frozen stages, a cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdge.registry import find_class
from mmdge.utils import UserError, checks, is_number

from ..cost import Cost
from ..layers import Block
from ..weights import Layout, load


class Backbone(BaseModule):
    """Base of the architectures: stages of blocks, static by themselves.

    A method (:mod:`mmdge.models.methods`) makes one dynamic by overriding
    :meth:`run_blocks`.

    Attributes:
        cost (Cost | None): What the last forward computed; the one thing a
            backbone remembers between calls.
        stages (Sequence): The blocks, stage by stage.
        strides (list[int]): Pixels per token, stage by stage.
        routers (list): Its decisions; none, unless a method makes some.
        dense (bool): Run as the dense twin: the static architecture with the
            same weights. See :meth:`as_dense_twin`.
        constant_shapes (bool): At test compute equally many rows of every
            image, padding or not, so that all shapes are known beforehand;
            see :func:`mmdge.calibration.fix_shapes`.
    """

    stages: Sequence[Sequence[Block]]
    cost: Cost | None = None
    layouts: tuple[Layout, ...] = ()
    unbuilt: tuple[str, ...] = ()
    arch_zoo: dict[str, dict] = {}
    out_type: str = 'featmap'
    in_channels: int = 3
    with_cp: bool = False
    frozen_stages: int = -1
    routers: Sequence[nn.Module] = ()
    dense: bool = False
    constant_shapes: bool = False

    @property
    def max_stages(self) -> int:
        """Stages of the architecture, built or not."""
        return len(self.stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(B, 3, H, W)`` to ``(B, C_i, H_i, W_i)``; set ``cost``."""
        raise NotImplementedError

    def ratios(self, x: Tensor) -> Tensor:
        """Dynamic over dense FLOPs of images ``(B, C, H, W)``, ``(B,)``.

        A method that decides early need not run the rest.
        """
        self(x)
        return self.cost.ratio

    def run_blocks(
        self,
        stage: int,
        tokens: Tensor,
        size: tuple[int, int],
        mask: Tensor | None,
        keep: Collection[int],
    ) -> tuple[list[Tensor], Cost]:
        """Run the blocks of a stage.

        Args:
            stage (int): Its number, from 0.
            tokens (Tensor): ``(B, E + H * W, C)``, extra tokens first.
            size (tuple[int, int]): ``(H, W)``.
            mask (Tensor, optional): See :meth:`valid_mask`.
            keep (Collection[int]): Blocks whose output is wanted.

        Returns:
            tuple[list[Tensor], Cost]: Those outputs, in the tokens' shape;
            what the blocks computed.
        """
        num_extra = tokens.shape[1] - size[0] * size[1]
        outs, flops = [], 0
        for number, block in enumerate(self.stages[stage]):
            flops += block.flops(size, num_extra).at(tokens.shape[1])
            tokens = self.run(block, tokens, size)
            if number in keep:
                outs.append(tokens)
        return outs, Cost.constant(flops, len(tokens), tokens.device)

    def run(self, body: Any, x: Tensor, *args: Any) -> Any:
        """Call ``body``; with ``with_cp`` it is run again in backward."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(body, x, *args, use_reentrant=False)
        return body(x, *args)

    def valid_mask(self, x: Tensor) -> Tensor | None:
        """Where images ``(B, C, H, W)`` are no padding; None: everywhere."""
        return None

    def check_images(self, x: Tensor) -> None:
        """Raise a UserError unless ``x`` is ``(B, in_channels, H, W)``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise UserError(
                f'expected images of shape (B, {self.in_channels}, H, W), '
                f'but got {tuple(x.shape)}.'
            )

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` keeps from training."""
        return []

    def deciding_parts(self) -> list[nn.Module | nn.Parameter]:
        """What adaptation leaves as it is, or decisions would change.

        That is for methods that decide once, e.g. from the embedding alone.
        """
        return []

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode, and return itself; frozen stages stay in eval mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def pos_embeds(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Grid and interpolation of each position embedding, by name."""
        return {}

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the backbone that weights, in our names, belong to.

        Those that they tell, beside depth and widths.
        """
        return {}

    def routers_by_name(self) -> dict[str, nn.Module]:
        """The routers and their names in the state dict."""
        return {}

    def adopt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Entries of this backbone out of those of its architecture."""
        return state

    def least_ratio(self, size: Sequence[int]) -> float:
        """Dynamic over dense FLOPs that no decision gets below.

        Of an image of ``size (H, W)``; 0 where there is no such bound.
        """
        return 0.0

    def new_parts(self) -> dict[str, nn.Module]:
        """Parts that weights may lack, beside routers, and their names.

        They then start anew, by their ``reset_parameters()``.
        """
        return {}

    @staticmethod
    def sizes_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """Depths and widths of weights in our names, in terms of ``arch``."""
        blocks = {
            found.groups(): state[key].numel()
            for key in sorted(state)
            if (found := re.match(r'(blocks?\d*)\.(\d+)\.norm', key))
        }
        depths = Counter(stage for stage, _ in blocks)
        widths = {stage: width for (stage, _), width in blocks.items()}
        return dict(
            num_layers=[*depths.values()], embed_dims=[*widths.values()]
        )

    @contextmanager
    def as_dense_twin(self) -> Iterator[None]:
        """Inside, decide nothing and compute everything."""
        before, self.dense = self.dense, True
        try:
            yield
        finally:
            self.dense = before

    def anneal(self, progress: float) -> None:
        """Move the routers between dense and their own target, in training.

        Evaluation always uses the target.

        Args:
            progress (float): 0: every cell dense; 1: the routers' shares. A
                router that learns its amount (the paper's) ignores it.
        """
        for router in self.routers:
            router.train_progress = progress

    def reset_parts(self) -> None:
        """Initialise routers, and what else has its own way, in that way."""

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
        self.reset_parts()
        super().init_weights()
        if configs and not files:
            self.reset_parts()

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        """Load what :func:`load` makes of the entries below ``prefix``.

        Whatever loads this backbone, alone or as a part of a model, MMEngine
        or PyTorch, comes through here. One without layouts is loaded as it is.

        Raises:
            UserError: If they don't fit.
        """
        if self.layouts:
            load(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _init_parameters(self) -> None:
        """Initialise as the official PVT, DeiT and Swin do."""
        positions = r'pos_embed|(cls|dist|register)_token|.*bias_table$'
        for name, parameter in self.named_parameters():
            if re.match(positions, name):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _set_norm_eps(self, eps: float | None) -> None:
        """Give all layer norms one ``eps``, as a host's ``norm_cfg`` does."""
        if eps is None:
            return
        if not is_number(eps) or eps < 0:
            raise UserError(
                f'norm_eps must be a number of at least 0, but got {eps!r}.'
            )
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    def __getstate__(self) -> dict:
        """Copies and pickles start without a cost, which may hold a graph."""
        return {**self.__dict__, 'cost': None}


def backbone_class(config: Mapping) -> type[Backbone] | None:
    """The backbone of ours that a config builds; None if it is another's."""
    kind = find_class(config['type']) if 'type' in config else None
    ours = isinstance(kind, type) and issubclass(kind, Backbone)
    return kind if ours else None


def look_up(arch: str | dict, zoo: dict[str, dict], defaults: dict) -> dict:
    """Settings of an architecture, by name or as they are.

    Raises:
        UserError: If the name is unknown, or a dict lacks or adds settings.
    """
    if isinstance(arch, str):
        if arch not in zoo:
            allowed = ', '.join(repr(name) for name in zoo)
            raise UserError(
                f'arch={arch!r} is unknown; allowed are {allowed}, or a dict.'
            )
        arch = zoo[arch]
    if not isinstance(arch, dict):
        raise UserError(f'arch must be a name or a dict, not {arch!r}.')
    arch = {**defaults, **arch}
    names = {*defaults, *next(iter(zoo.values()))}
    if set(arch) != names:
        raise UserError(f'arch must give {sorted(names)}, but got {arch}.')
    return arch


def check_stages(arch: Mapping[str, Any], num_stages: int) -> None:
    """Raise a UserError unless each setting has one value per stage."""
    if any(
        not isinstance(values, (list, tuple)) or len(values) != num_stages
        for values in arch.values()
    ):
        raise UserError(
            f'arch must give {num_stages} values to each of '
            f'{sorted(arch)}, but got {arch}.'
        )


def image_size(
    pretrain_img_size: int | Sequence[int], least: int
) -> tuple[int, int]:
    """Height and width of the images that position embeddings are made for.

    Raises:
        UserError: If it is no integer, or pair of them, of at least
            ``least``.
    """
    size = pretrain_img_size
    size = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or not all(isinstance(side, int) and side >= least for side in size)
    ):
        raise UserError(
            'pretrain_img_size, the side of the images or (height, width), '
            f'must be an integer of at least {least}, or two, but got '
            f'{pretrain_img_size!r}.'
        )
    return tuple(size)


def check_arguments(
    out_type: str,
    frozen_stages: int,
    most: int,
    out_types: Sequence[str] = ('featmap', 'cls_token'),
) -> None:
    """Raise a UserError unless there are such an output and such stages."""
    if out_type not in out_types:
        allowed = ' or '.join(map(repr, out_types))
        raise UserError(f'out_type must be {allowed}, but got {out_type!r}.')
    if not isinstance(frozen_stages, int) or frozen_stages > most:
        raise UserError(
            f'frozen_stages={frozen_stages!r} must be an integer of at most '
            f'{most}.'
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
        raise UserError(
            f'out_indices={out_indices!r} must be ascending and among 0 to '
            f'{num - 1}, or negative, counted from the end.'
        )
    return tuple(indices)
