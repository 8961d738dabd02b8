"""DGE on each architecture: static backbone + granularity + defaults.

Source: Dynamic Grained Encoder (Song et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdge.registry import MODELS

from ..architectures import DPVT, PVT, ConvNeXt, PVTv2, Swin, ViT
from ..methods import Granularity


@MODELS.register_module()
class DGEPVT(Granularity, PVT):
    """PVT whose blocks give each region as many queries as it deserves.

    ``routing='finest'`` is its dense twin, the plain PVT. Checkpoints of the
    official PVT and others load as they are, see ``docs/checkpoints.md``.

    What is 0 in all channels counts as padding, which share and error routers
    give the fewest queries: pad after normalising, with 0, as the hosts do.

    Args:
        arch (str | dict): See :class:`PVT`. Defaults to ``'small'``.
        granularities (Sequence[int] | Sequence[Sequence[int]]): Candidate
            sides of a patch in tokens, finest first, each dividing the last,
            which is the region's side: one set for all stages, or one per
            stage. Defaults to (1, 2, 4).
        routing (str | dict | Sequence): ``'learned'`` (the paper's router),
            ``'variance'`` (by the variance inside the region, without
            parameters), ``'error'`` (by the error that it predicts, see
            ``docs/budgets.md``), the controls ``'oracle'``, ``'shuffled'``,
            ``'random'`` and ``'uniform'``, ``'finest'`` (the dense twin), or
            a router's config, e.g. ``dict(type='QuantileRouter',
            score='learned')``; a list gives one per stage. Defaults to
            ``'learned'``.
        price (float): At test time the choice is ``argmax(logit_k - price *
            cost_k)``. Defaults to 0, the router as it was trained.
        sparse_training (bool): In training compute only the granularity that
            was chosen, instead of all of them. Routers without parameters
            always do. Defaults to False.
        blocks_per_decision (int | str): So many consecutive blocks of a stage
            share the decision of the first, or ``'stage'``, all of a stage:
            fewer small calls, for small images and batches. Defaults to 1.
        **kwargs: See :class:`PVT`.

    Example:
        >>> model = DGEPVT(arch='tiny', routing='variance').eval()
        >>> maps = model(torch.rand(1, 3, 224, 224))
        >>> [tuple(m.shape) for m in maps][0], model.cost.ratio.shape
        ((1, 64, 56, 56), torch.Size([1]))
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        granularities: Sequence = (1, 2, 4),
        routing: str | dict | Sequence = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        blocks_per_decision: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_routers(
            granularities, routing, price, sparse_training, blocks_per_decision
        )


@MODELS.register_module()
class DGEDPVT(Granularity, DPVT):
    """DPVT whose blocks give each region as many queries as it deserves.

    A patch looks from its centre. ``routing='finest'`` is its dense twin, the
    plain DPVT. Padding is what it is for :class:`DGEPVT`.

    Args:
        arch (str | dict): See :class:`DPVT`. Defaults to ``'small'``.
        granularities (Sequence[int] | Sequence[Sequence[int]]): See
            :class:`DGEPVT`. Defaults to (1, 2, 4).
        routing (str | dict | Sequence): See :class:`DGEPVT`. Defaults to
            ``'learned'``.
        price (float): See :class:`DGEPVT`. Defaults to 0.
        sparse_training (bool): See :class:`DGEPVT`. Defaults to False.
        blocks_per_decision (int | str): See :class:`DGEPVT`. Defaults to 1.
        **kwargs: See :class:`DPVT`.

    Example:
        >>> model = DGEDPVT(arch='tiny', routing='variance').eval()
        >>> maps = model(torch.rand(1, 3, 224, 224))
        >>> [tuple(m.shape) for m in maps][0], model.cost.ratio.shape
        ((1, 64, 56, 56), torch.Size([1]))
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        granularities: Sequence = (1, 2, 4),
        routing: str | dict | Sequence = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        blocks_per_decision: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_routers(
            granularities, routing, price, sparse_training, blocks_per_decision
        )


@MODELS.register_module()
class DGEPVTv2(Granularity, PVTv2):
    """PVTv2 or MiT whose blocks give each region as many rows as it deserves.

    ``routing='finest'`` is its dense twin, equal to the hosts' own. The
    depthwise convolution in the MLP sees the un-pooled rows, each at all
    places that it stands for. Padding is what it is for :class:`DGEPVT`.

    Args:
        arch (str | dict): See :class:`PVTv2`. Defaults to ``'b2'``.
        granularities (Sequence[int] | Sequence[Sequence[int]]): See
            :class:`DGEPVT`. Defaults to (1, 2, 4).
        routing (str | dict | Sequence): See :class:`DGEPVT`. Defaults to
            ``'learned'``.
        price (float): See :class:`DGEPVT`. Defaults to 0.
        sparse_training (bool): See :class:`DGEPVT`. Defaults to False.
        blocks_per_decision (int | str): See :class:`DGEPVT`. Defaults to 1.
        **kwargs: See :class:`PVTv2`.

    Example:
        >>> model = DGEPVTv2('mit-b0', routing='variance').eval()
        >>> maps = model(torch.rand(1, 3, 224, 224))
        >>> [tuple(m.shape) for m in maps][0], model.cost.ratio.shape
        ((1, 32, 56, 56), torch.Size([1]))
    """

    def __init__(
        self,
        arch: str | dict = 'b2',
        granularities: Sequence = (1, 2, 4),
        routing: str | dict | Sequence = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        blocks_per_decision: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_routers(
            granularities, routing, price, sparse_training, blocks_per_decision
        )


@MODELS.register_module()
class DGESwin(Granularity, Swin):
    """Swin whose MLPs give each region as many rows as it deserves.

    ``routing='finest'`` is its dense twin, the plain Swin, equal to the
    hosts' ``SwinTransformer`` with the same weights. Padding is what it is
    for :class:`DGEPVT`.

    Args:
        arch (str | dict): See :class:`Swin`. Defaults to ``'tiny'``.
        granularities (Sequence[int] | Sequence[Sequence[int]]): See
            :class:`DGEPVT`; they need not fit the window. Defaults to
            (1, 2, 4).
        coarse_queries (bool): Rows are queries of the window attention, too;
            else that is computed for all tokens. Defaults to False.
        routing (str | dict | Sequence): See :class:`DGEPVT`. Defaults to
            ``'learned'``.
        price (float): See :class:`DGEPVT`. Defaults to 0.
        sparse_training (bool): See :class:`DGEPVT`. Defaults to False.
        blocks_per_decision (int | str): See :class:`DGEPVT`. Defaults to 1.
        **kwargs: See :class:`Swin`.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        granularities: Sequence = (1, 2, 4),
        routing: str | dict | Sequence = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        coarse_queries: bool = False,
        blocks_per_decision: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        for stage in self.stages:
            for block in stage:
                block.coarse_queries = coarse_queries
        self.add_routers(
            granularities, routing, price, sparse_training, blocks_per_decision
        )


@MODELS.register_module()
class DGEViT(Granularity, ViT):
    """ViT whose blocks give each region as many queries as it deserves.

    That of DeiT, DINOv2, MAE and others. ``routing='finest'`` is its dense
    twin, the plain ViT, equal to ``mmpretrain.VisionTransformer`` with the
    same weights. Padding is what it is for :class:`DGEPVT`. Extra tokens are
    always computed.

    Args:
        arch (str | dict): See :class:`ViT`. Defaults to ``'small'``.
        granularities (Sequence[int]): See :class:`DGEPVT`. Defaults to
            (1, 2, 4).
        routing (str | dict): See :class:`DGEPVT`. Defaults to ``'learned'``.
        price (float): See :class:`DGEPVT`. Defaults to 0.
        sparse_training (bool): See :class:`DGEPVT`. Defaults to False.
        blocks_per_decision (int | str): See :class:`DGEPVT`. Defaults to 1.
        **kwargs: See :class:`ViT`.

    Example:
        >>> model = DGEViT('dinov2-small', routing='variance').eval()
        >>> (map,) = model(torch.rand(1, 3, 224, 224))
        >>> map.shape, model.cost.ratio.shape
        (torch.Size([1, 384, 16, 16]), torch.Size([1]))
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        granularities: Sequence[int] = (1, 2, 4),
        routing: str | dict = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        blocks_per_decision: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_routers(
            granularities, routing, price, sparse_training, blocks_per_decision
        )


@MODELS.register_module()
class DGEDeiT(DGEViT):
    """:class:`DGEViT`, by the name of the paper's."""


@MODELS.register_module()
class DGEConvNeXt(Granularity, ConvNeXt):
    """ConvNeXt whose MLPs give each region as many rows as it deserves.

    Depthwise convolutions see all tokens, rows are pooled from what they
    give. ``routing='finest'`` is its dense twin, the plain ConvNeXt, equal to
    ``mmpretrain.ConvNeXt`` with the same weights. Padding is what it is for
    :class:`DGEPVT`.

    Args:
        arch (str | dict): See :class:`ConvNeXt`. Defaults to ``'tiny'``.
        granularities (Sequence): See :class:`DGEPVT`. Defaults to (1, 2, 4).
        routing (str | dict | Sequence): See :class:`DGEPVT`. Defaults to
            ``'learned'``.
        price (float): See :class:`DGEPVT`. Defaults to 0.
        sparse_training (bool): See :class:`DGEPVT`. Defaults to False.
        blocks_per_decision (int | str): See :class:`DGEPVT`. Defaults to 1.
        **kwargs: See :class:`ConvNeXt`.

    Example:
        >>> model = DGEConvNeXt(arch='tiny', routing='variance').eval()
        >>> maps = model(torch.rand(1, 3, 224, 224))
        >>> [tuple(m.shape) for m in maps][0], model.cost.ratio.shape
        ((1, 96, 56, 56), torch.Size([1]))
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        granularities: Sequence = (1, 2, 4),
        routing: str | dict | Sequence = 'learned',
        price: float = 0.0,
        sparse_training: bool = False,
        blocks_per_decision: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.add_routers(
            granularities, routing, price, sparse_training, blocks_per_decision
        )
