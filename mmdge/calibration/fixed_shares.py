"""Constant shapes: how much every image gets, from some images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from mmdge.models.architectures import Backbone
from mmdge.models.routing import Decision, Router
from mmdge.utils import UserError


@torch.no_grad()
def fix_shapes(backbone: Backbone, batches: Iterable[Tensor]) -> None:
    """Let every image spend what images spend on average.

    Each router's mean shares of the candidates, over cells that are no
    padding, become its :attr:`Router.fixed_shares`, and
    :attr:`Backbone.constant_shapes` is set: then all shapes are known before
    an image is seen. *Where* is still decided image by image.

    Args:
        backbone (Backbone): In evaluation mode.
        batches (Iterable[Tensor]): Preprocessed images ``(B, 3, H, W)``,
            without labels.

    Raises:
        UserError: If its method's shapes vary by nature, or there is no
            image.
    """
    reason = getattr(backbone, 'varying', '')
    if reason:
        raise UserError(
            f'{type(backbone).__name__} cannot have constant shapes: {reason}'
        )
    backbone.constant_shapes = False
    for router in backbone.routers:
        router.fixed_shares = None
    counts = [0] * len(backbone.routers)  # (K,) each
    num_images = 0
    with _watched(backbone.routers) as seen:
        for images in batches:
            num_images += len(images)
            for choices in seen:
                choices.clear()
            backbone(images)
            for number, (choices, decided) in enumerate(
                zip(seen, backbone.cost.maps, strict=True)
            ):
                num = backbone.routers[number].num_candidates
                for choice in choices:
                    inside = torch.ones_like(choice, dtype=torch.bool)
                    if decided.valid is not None:
                        inside = decided.valid.view_as(choice)
                    counts[number] += choice[inside].bincount(minlength=num)
    if not num_images:
        raise UserError('no image was given to measure shares of.')
    for router, count in zip(backbone.routers, counts, strict=True):
        if isinstance(count, Tensor):  # others, as of top-k, are constant
            router.fixed_shares = tuple(
                (count.double() / count.sum()).tolist()
            )
    backbone.constant_shapes = True


@contextmanager
def _watched(routers: Iterable[Router]) -> Iterator[list[list[Tensor]]]:
    """Note what each router chooses, ``(B, *cells)``, time after time."""
    routers = list(routers)
    seen = [[] for _ in routers]

    def decide(
        router: Router, choices: list[Tensor], *args: object
    ) -> Decision | None:
        decision = type(router).decide(router, *args)
        choices.append(decision.choice)
        return decision

    for router, choices in zip(routers, seen, strict=True):
        router.decide = partial(decide, router, choices)
    try:
        yield seen
    finally:
        for router in routers:
            del router.decide
