"""Images to calibrate with, as the backbone gets them."""

from __future__ import annotations

import copy
import sys
from itertools import cycle

from mmengine.config import Config
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmdge.datasets import image_loader, plain_datasets


def load_images(
    cfg: Config, model: nn.Module, number: int, split: str = 'train'
) -> list[Tensor]:
    """Load and preprocess images as the test does, showing progress.

    A price that was found at another size would not hold.

    Args:
        cfg (Config): See :func:`mmdge.datasets.image_loader`; the pipeline is
            that of its ``test_dataloader`` if there is one, inside wrappers
            too.
        model (nn.Module): The host's model, with its preprocessor.
        number (int): Of images, at most as many as there are.
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.

    Returns:
        list[Tensor]: Each ``(1, 3, H, W)``, on the model's device.
    """
    loader = tested_loader(cfg, number, split)
    return [
        model.data_preprocessor(data, False)['inputs']
        for data in track_iter_progress((loader, len(loader)), file=sys.stderr)
    ]


def tested_loader(
    cfg: Config, number: int | None = None, split: str = 'train'
) -> DataLoader:
    """Load images one by one as the test does, see :func:`load_images`."""
    cfg = copy.deepcopy(cfg)
    tested, validated = (
        list(plain_datasets((cfg.get(loader) or {}).get('dataset') or {}))
        for loader in ('test_dataloader', 'val_dataloader')
    )
    # One for each set, or the same for all; without a test, their own.
    for part, like in zip(validated, cycle(tested), strict=False):
        if 'pipeline' in part and 'pipeline' in like:
            part['pipeline'] = like['pipeline']
    return image_loader(cfg, split, number)
