"""DynamicViT (Rao et al., NeurIPS 2021) on DeiT, ViT and LV-ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdge.registry import MODELS

from ..architectures import LVViT, ViT
from ..methods import Pruning


@MODELS.register_module()
class DynamicViT(Pruning, ViT):
    """DeiT that drops the tokens that matter little, before some blocks.

    ``routing='finest'`` is its dense twin, the plain DeiT. Checkpoints of
    the official DynamicViT, DeiT and others load as they are; what they lack
    of the predictors starts anew.

    For classification (``out_type='cls_token'``) it is the paper's. For maps
    dropped tokens keep their last features. Padding, what is 0 in all
    channels, is dropped first and does not count.

    Args:
        arch (str | dict): See :class:`ViT`. Defaults to ``'small'``.
        keep_ratio (float | Sequence[float]): Part of the tokens that the s-th
            predictor keeps: its s-th power, or the s-th of a list. Defaults
            to 0.7.
        pruning_loc (Sequence[int], optional): Blocks before which predictors
            decide; None: after each quarter of the blocks but the last.
            Defaults to (3, 6, 9), which is that for DeiT.
        routing (str): ``'learned'``: the predictors; ``'random'`` and
            ``'uniform'``: controls that keep as many; ``'finest'``: the dense
            twin. Defaults to ``'learned'``.
        amount (str): How much is kept at test. ``'topk'``: the keep ratio of
            each image, as in the paper; ``'price'``: tokens whose log
            probability is worth the price, so that images differ. Defaults
            to ``'topk'``.
        price (float): For ``amount='price'``: a token is kept if
            ``logp_keep - price >= logp_drop``. Defaults to 0.
        reactivate (bool): Let a later predictor take dropped tokens up again
            (SViT, WACV 2024). Defaults to False: what is dropped stays so.
        **kwargs: See :class:`ViT`.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        keep_ratio: float | Sequence[float] = 0.7,
        pruning_loc: Sequence[int] | None = (3, 6, 9),
        routing: str = 'learned',
        amount: str = 'topk',
        price: float = 0.0,
        reactivate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        if pruning_loc is None:
            depth = self.arch['num_layers']
            pruning_loc = [depth * quarters // 4 for quarters in (1, 2, 3)]
        self.add_predictors(
            keep_ratio,
            pruning_loc,
            routing,
            amount,
            price,
            reactivate,
            keep_features=reactivate or self.out_type == 'featmap',
        )


@MODELS.register_module()
class DynamicLVViT(DynamicViT, LVViT):
    """LV-ViT that drops tokens, as :class:`DynamicViT`.

    Checkpoints of the official LV-ViT and of DynamicViT on it load as they
    are.

    Args:
        arch (str | dict): See :class:`LVViT`. Defaults to ``'small'``.
        keep_ratio (float | Sequence[float]): See :class:`DynamicViT`.
            Defaults to 0.7.
        pruning_loc (Sequence[int], optional): Likewise. Defaults to None:
            (4, 8, 12) for ``'small'``, (5, 10, 15) for ``'medium'``.
        **kwargs: See :class:`DynamicViT` and :class:`LVViT`.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        keep_ratio: float | Sequence[float] = 0.7,
        pruning_loc: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, keep_ratio, pruning_loc, **kwargs)
