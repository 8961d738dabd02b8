"""What of a host's model is exported: from images to its raw outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmdge.models.architectures import Backbone
from mmdge.utils import UserError

# Multiply-adds of the backbone for each image, dynamic and dense.
FLOPS = 'backbone_flops'
SCOPES = ('model', 'backbone')
KINDS = (
    "single-stage detectors with mmdet's dense heads, two-stage detectors, "
    "mmseg's EncoderDecoder, mmpretrain's ImageClassifier"
)


class Part(NamedTuple):
    """The part of a model that is exported.

    Attributes:
        head (nn.Module | None): Whose outputs are returned.
        names (tuple[str, ...]): Of what the head returns: a tuple of lists
            of maps, or, where it is a single name, one tensor.
        maps (bool): Whether the maps that it gets are returned, too.
    """

    head: nn.Module | None
    names: tuple[str, ...]
    maps: bool


def part_of(model: nn.Module, scope: str = 'model') -> Part:
    """Find what is exported of a model of mmdet, mmseg or mmpretrain.

    Args:
        model: Of a host.
        scope: ``'model'``, or ``'backbone'``: its maps alone, of any model.

    Raises:
        UserError: If the model is of another kind.
    """
    if scope == 'backbone':
        return Part(None, (), True)
    kinds = _kinds(model)
    if 'mmdet.TwoStageDetector' in kinds and hasattr(model, 'rpn_head'):
        names = _results(model.rpn_head, 'rpn_')
        return Part(model.rpn_head, names, True)
    if 'mmdet.SingleStageDetector' in kinds:
        if 'mmdet.BaseDenseHead' in _kinds(model.bbox_head):
            return Part(model.bbox_head, _results(model.bbox_head), False)
    elif 'mmseg.EncoderDecoder' in kinds:
        if 'mmseg.BaseDecodeHead' in _kinds(model.decode_head):
            return Part(model.decode_head, ('seg_logits',), False)
    elif 'mmpretrain.ImageClassifier' in kinds and model.with_head:
        # CF-ViT's head is for two logits, and has the host's inside.
        head = getattr(model.head, 'head', model.head)
        if 'mmpretrain.ClsHead' in _kinds(head):
            return Part(head, ('logits',), False)
    raise UserError(
        f'{type(model).__name__} with its head is of no kind that is '
        f"exported, which are {KINDS}; export the backbone's maps by "
        '--scope backbone'
    )


class RawOutputs(nn.Module):
    """From normalised images to a model's outputs, without post-processing.

    Where it ends depends on the model:

    - single-stage detector: class scores, box deltas and what else the head
      has, of each level;
    - two-stage detector: the neck's maps and the RPN's outputs. The RoI heads
      stay in PyTorch, because their number of boxes depends on the image;
    - segmentor: the decode head's logits, before they are resized;
    - classifier: logits;
    - of any model, with ``scope='backbone'``: the backbone's maps.

    The images come from the host's data preprocessor: mean, standard
    deviation and the order of colours are no part of it.

    Args:
        model: A host's model, which stays as it is.
        scope: ``'model'`` or ``'backbone'``. Default: ``'model'``.
        with_flops: Return :data:`FLOPS` as well, for a backbone of this
            package, ``(B, 2)``. Default: False.

    Raises:
        UserError: See :func:`part_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        scope: str = 'model',
        with_flops: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.part = part_of(model, scope)
        self.with_flops = with_flops

    def named(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name, in their order, for images ``(B, 3, H, W)``.

        Those of levels end in a number, e.g. ``'cls_scores_0'``.
        """
        head, names, maps = self.part
        if head is None:
            feats = self.model.backbone(images)
        else:
            feats = self.model.extract_feat(images)
        outs = {}
        if maps:
            outs |= {f'map_{i}': x for i, x in enumerate(feats)}
        if head is not None:
            found = head(feats)
            if isinstance(found, Tensor):
                outs[names[0]] = found
            else:
                outs |= {
                    f'{name}_{level}': x
                    for name, levels in zip(names, found, strict=False)
                    for level, x in enumerate(levels)
                }
        if self.with_flops and isinstance(self.model.backbone, Backbone):
            cost = self.model.backbone.cost
            outs[FLOPS] = torch.stack([cost.dynamic, cost.dense], 1)
        return outs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs alone, see :meth:`named`."""
        return tuple(self.named(images).values())


class Maps(tuple):
    """Maps, and what the head makes of them, which is known already."""

    found: Any


def as_host(part: Part, outs: Mapping[str, Tensor]) -> Maps:
    """Outputs by name in the form in which a model hands them on.

    Raises:
        UserError: If they are not this model's.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in outs.items():
        stem, _, level = name.rpartition('_')
        groups.setdefault(stem if level.isdigit() else name, []).append(tensor)
    found = [groups[name] for name in part.names if name in groups]
    if bool(part.names) != bool(found) or part.maps != ('map' in groups):
        raise UserError(
            f'the file has the outputs {", ".join(outs)}, which are not '
            'those of this model; give the config that it was exported with'
        )
    maps = Maps(groups.get('map', ()))
    single = part.names and part.names[0] in outs
    maps.found = found[0][0] if single else tuple(found)
    return maps


def _results(head: nn.Module, prefix: str = '') -> tuple[str, ...]:
    """What a dense head returns, as its post-processing names it."""
    names: Sequence[str] = [*signature(head.predict_by_feat).parameters]
    if 'batch_img_metas' in names:
        names = names[: names.index('batch_img_metas')]
    return tuple(prefix + name for name in names)


def _kinds(module: nn.Module) -> set[str]:
    """The classes of a module, as ``'mmdet.RetinaNet'``."""
    return {
        f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
        for kind in type(module).__mro__
    }
