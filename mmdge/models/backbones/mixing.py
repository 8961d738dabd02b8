"""ViTs that decide once which regions are one token."""

from __future__ import annotations

from typing import Any

from mmdge.registry import MODELS

from ..architectures import ViT
from ..methods import Merging, MixedPatches


@MODELS.register_module()
class MixedPatchViT(MixedPatches, ViT):
    """ViT that looks at parts of an image at half their size.

    A region of 2 x 2 tokens, where that changes little, is the one token
    of the half-size image there. ``routing='finest'`` is its dense twin, the
    plain ViT. Checkpoints load as those of :class:`mmdge.DGEViT`. It stays
    near what a ViT has seen in training, so that a trained one can be used
    as it is, after a calibration by ``make_dynamic.py``.

    Args:
        arch (str | dict): See :class:`ViT`. Defaults to ``'small'``.
        routing (str | dict): ``'effect'``: where the model's outputs would
            change, see ``docs/budgets.md``; ``'variance'``; the controls
            ``'random'`` and ``'uniform'``; ``'finest'``; or a router's
            config. Defaults to ``'effect'``.
        price (float): See :class:`mmdge.DGEPVT`. Defaults to 0.
        **kwargs: See :class:`ViT`.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        routing: str | dict = 'effect',
        price: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_router(routing, price, 0, 2 * self.arch['embed_dims'])


@MODELS.register_module()
class MergingViT(Merging, ViT):
    """ViT that merges the tokens of some regions of 2 x 2, once.

    They are copied back at the end. ``routing='finest'`` is its dense twin,
    the plain ViT. Checkpoints load as those of :class:`mmdge.DGEViT`.

    Args:
        arch (str | dict): See :class:`ViT`. Defaults to ``'small'``.
        merging_loc (int): The block before which tokens are merged. Defaults
            to 1.
        routing (str | dict): See :class:`MixedPatchViT`. Defaults to
            ``'effect'``.
        price (float): See :class:`mmdge.DGEPVT`. Defaults to 0.
        **kwargs: See :class:`ViT`.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        merging_loc: int = 1,
        routing: str | dict = 'effect',
        price: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_router(routing, price, merging_loc, self.arch['embed_dims'])
