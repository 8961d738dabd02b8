"""ViTs that take some regions as one token, CF-ViT among them."""

from __future__ import annotations

from typing import Any

from mmdge.registry import MODELS

from ..architectures import LVViT, ViT
from ..methods import CoarseToFine, DenseLabels, Merging, MixedPatches


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


@MODELS.register_module()
class CFViT(CoarseToFine, ViT):
    """ViT that looks at the half-size image first, then where it matters.

    Source: CF-ViT (Chen et al., AAAI 2023). With ``num_classes`` it is the
    paper's classifier, with an early exit: sure images leave after the coarse
    pass, and nothing more is computed for them. It then returns the pair of
    coarse and final logits, ``(B, K)`` each, which
    :class:`mmdge.CoarseToFineHead` takes: in training the final ones are the
    second pass's for all images, at test those by which each image left.
    Without, there is no exit, and it returns maps, or the cls token, of the
    second pass, in which a region that stayed coarse has four equal tokens.

    ``routing='finest'`` is its dense twin, the plain ViT at full resolution,
    without a coarse pass, whose FLOPs are the dense ones: a CF-ViT that
    splits all regions spends more. One that was trained from scratch was
    never trained as its dense twin.

    Checkpoints of the official CF-ViT, and those of :class:`mmdge.DGEViT`,
    load as they are. Coarse positions that they lack are their positions,
    resized; what else they lack starts anew, so that a plain ViT begins nearly
    as :class:`mmdge.MixedPatchViT`, which halves the image in another way.
    Padding, what is 0 in all channels, is never split and does not count.

    Args:
        arch (str | dict): See :class:`ViT`. Defaults to ``'small'``.
        alpha (float): Part of the regions of 2 x 2 tokens that is split, in
            (0, 1]. :class:`mmdge.RoutingWarmupHook` leads there from all of
            them; ``begin`` = ``end`` = .67 is the paper's, which switches
            selection on late. Defaults to 0.5.
        routing (str): ``'attention'``: what the cls token attends to in the
            coarse pass; ``'random'`` and ``'uniform'``: controls that split
            as many; ``'finest'``: the dense twin. Defaults to
            ``'attention'``.
        price (float): ``1 - eta`` in the paper's terms, in [0, 1], at test:
            an image goes on if ``1 - confidence >= price``, its confidence
            being the coarse pass's largest probability. Defaults to 0: all
            go on.
        num_classes (int, optional): Of the classifier. Defaults to None:
            none.
        attention_from (int): The first block, from 0, whose attention
            counts; of shallower ones the last. Defaults to 3.
        **kwargs: See :class:`ViT`.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        alpha: float = 0.5,
        routing: str = 'attention',
        price: float = 0.0,
        num_classes: int | None = None,
        attention_from: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_coarse_pass(
            alpha, routing, price, num_classes, attention_from
        )


@MODELS.register_module()
class CFLVViT(DenseLabels, CFViT, LVViT):
    """LV-ViT that looks at the half-size image first, as :class:`CFViT`.

    With ``num_classes`` its patches are classified, too: the best score of
    each class counts a quarter. Checkpoints of the official CF-ViT on LV-ViT,
    and of LV-ViT, load as they are.

    Args:
        arch (str | dict): See :class:`LVViT`. Defaults to ``'small'``.
        **kwargs: See :class:`CFViT` and :class:`LVViT`.
    """
