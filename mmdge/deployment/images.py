"""Images as an exported model gets them: all of one size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from .onnx_file import Size


@torch.no_grad()
def backbone_inputs(model: nn.Module, loader: Iterable[Any]) -> list[Tensor]:
    """Images as the backbone gets them when the host predicts.

    Of an image that a prediction cuts into windows, the one in the middle.

    Args:
        model: Of a host.
        loader: Of single images.

    Returns:
        list[Tensor]: ``(1, 3, H, W)`` each.
    """
    seen, windows = [], []
    handle = model.backbone.register_forward_pre_hook(
        lambda module, args: windows.append(args[0][:1])
    )
    for data in loader:
        windows.clear()
        model.test_step(data)
        seen.append(windows[len(windows) // 2])
    handle.remove()
    return seen


def fit(
    images: Tensor, size: Size | None, pads: bool, divisor: int = 1
) -> Tensor:
    """Bring images to a size that a file is for.

    Args:
        images: ``(B, C, H, W)``.
        size: Height and width; None: any that ``divisor`` divides.
        pads: Whether a smaller image is padded with zeros, at the right and
            at the bottom, as mmdet pads those of a batch.
        divisor: Default: 1.

    Raises:
        UserError: If they have another size.
    """
    found = tuple(images.shape[-2:])
    wanted = size or tuple(-(-side // divisor) * divisor for side in found)
    if found == wanted:
        return images
    height, width = (w - f for w, f in zip(wanted, found, strict=True))
    if not pads or min(height, width) < 0:
        sizes = shown(size) if size else f'multiples of {divisor}'
        again = '--size {} {}'.format(*found) if size else 'one --size'
        raise UserError(
            f'the file is for images of {sizes} (height x width), but got '
            f'{shown(found)}; export with {again}, or let the test pipeline '
            'resize'
        )
    return F.pad(images, (0, width, 0, height))


def resized(images: Tensor, size: Size, pads: bool) -> Tensor:
    """Bring images to a size, by padding if that suffices; see :func:`fit`."""
    height, width = images.shape[-2:]
    if pads and height <= size[0] and width <= size[1]:
        return fit(images, size, pads)
    return F.interpolate(images, size, mode='bilinear', antialias=True)


def common_size(images: Sequence[Tensor], pads: bool) -> Size:
    """Height and width that images have, or that holds them padded.

    Raises:
        UserError: If they differ, and must not be padded.
    """
    sizes = sorted({tuple(image.shape[-2:]) for image in images})
    if len(sizes) > 1 and not pads:
        raise UserError(
            f'the test pipeline gives images of several sizes, from '
            f'{shown(sizes[0])} to {shown(sizes[-1])}; choose one by --size '
            'H W, and a pipeline that resizes to it'
        )
    return tuple(map(max, zip(*sizes, strict=True)))


def shown(size: Size) -> str:
    """E.g. ``'800 x 1216'``."""
    return ' x '.join(map(str, size))


def batch_of(images: Sequence[Tensor], number: int) -> Tensor:
    """The first images; again from the beginning where there are too few."""
    return torch.cat([images[i % len(images)] for i in range(number)])
