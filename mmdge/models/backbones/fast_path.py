"""DynamicSwin and DynamicConvNeXt, with a fast path for what matters less.

Source: Dynamic Spatial Sparsification (Rao et al., T-PAMI 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdge.registry import MODELS

from ..architectures import ConvNeXt, Swin
from ..methods import FastPath


@MODELS.register_module()
class DynamicSwin(FastPath, Swin):
    """Swin whose unimportant tokens take a linear layer in place of the MLP.

    Windows attend as ever; predictors decide in the third stage. ``routing=
    'finest'`` is its dense twin, the plain Swin. Checkpoints of the official
    DynamicSwin, Swin and others load as they are; predictors and fast paths
    that they lack start anew. ``make_dynamic.py`` fits the fast paths to the
    MLPs, without training.

    Padding, what is 0 in all channels, takes the fast path and does not
    count.

    Args:
        arch (str | dict): See :class:`Swin`. Defaults to ``'tiny'``.
        keep_ratio (float | Sequence[float]): Part of the tokens that the s-th
            predictor (s = 0, 1, ...) gives the slow path: less .2 s, or the
            s-th of a list. Defaults to 0.7.
        pruning_loc (Sequence[int], optional): Blocks of the third stage
            before which predictors decide. Defaults to None: the first three
            multiples of a ninth of its depth, at least of 1, as the paper's
            sizes have it.
        routing (str): ``'learned'``: the predictors; ``'random'`` and
            ``'uniform'``: controls that keep as many; ``'finest'``: the dense
            twin. Defaults to ``'learned'``.
        amount (str): See :class:`DynamicViT`. Defaults to ``'topk'``.
        price (float): See :class:`DynamicViT`. Defaults to 0.
        **kwargs: See :class:`Swin`.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        keep_ratio: float | Sequence[float] = 0.7,
        pruning_loc: Sequence[int] | None = None,
        routing: str = 'learned',
        amount: str = 'topk',
        price: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_fast_paths(keep_ratio, pruning_loc, routing, amount, price)


@MODELS.register_module()
class DynamicConvNeXt(FastPath, ConvNeXt):
    """ConvNeXt with a fast path; see :class:`DynamicSwin`.

    Args:
        arch (str | dict): See :class:`ConvNeXt`. Defaults to ``'tiny'``.
        keep_ratio (float | Sequence[float]): See :class:`DynamicSwin`, also
            for the others. Defaults to 0.7.
        pruning_loc (Sequence[int], optional): Defaults to None.
        routing (str): Defaults to ``'learned'``.
        amount (str): Defaults to ``'topk'``.
        price (float): Defaults to 0.
        **kwargs: See :class:`ConvNeXt`.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        keep_ratio: float | Sequence[float] = 0.7,
        pruning_loc: Sequence[int] | None = None,
        routing: str = 'learned',
        amount: str = 'topk',
        price: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_fast_paths(
            *(keep_ratio, pruning_loc, routing, amount, price),
            eps=1e-6,
            layer_scale_init_value=self.layer_scale_init_value,
        )
