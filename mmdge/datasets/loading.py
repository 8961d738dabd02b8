"""Images of a config's splits, as its model is tested on them."""

from __future__ import annotations

import copy
import random

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from mmdge.utils import UserError

# What tells the splits of a data set apart.
_SPLIT_KEYS = ('data_root', 'ann_file', 'data_prefix', 'split')


def image_loader(
    cfg: Config, split: str = 'val', number: int | None = None
) -> DataLoader:
    """Load images one by one, through the pipeline of the validation.

    Args:
        cfg (Config): With a ``val_dataloader``.
        split (str): ``'val'`` or ``'train'``. Defaults to ``'val'``.
        number (int, optional): Of images, chosen at random, always the same.
            Defaults to None: all.

    Raises:
        UserError: If there is no such split to load.
    """
    if cfg.get('val_dataloader') is None:
        raise UserError(f'{cfg.filename} has no val_dataloader')
    loader = dict(
        copy.deepcopy(cfg.val_dataloader),
        batch_size=1,
        num_workers=0,
        persistent_workers=False,
    )
    loader.pop('prefetch_factor', None)
    config = loader['dataset']
    if split == 'train':
        config = {k: v for k, v in config.items() if k not in _SPLIT_KEYS}
        config.update(_of_training(cfg))
    dataset = DATASETS.build(config)
    if number is not None and number < len(dataset):
        chosen = random.Random(0).sample(range(len(dataset)), number)
        dataset = Subset(dataset, chosen)  # MMEngine's knows no mixtures
    return Runner.build_dataloader(dict(loader, dataset=dataset))


def _of_training(cfg: Config) -> dict:
    dataset = (cfg.get('train_dataloader') or {}).get('dataset')
    while dataset and 'dataset' in dataset:  # repeated, mixed, balanced, ...
        dataset = dataset['dataset']
    if not dataset or 'datasets' in dataset:
        raise UserError(
            f'{cfg.filename} has no single data set in train_dataloader to '
            'take images from; take them from the validation set'
        )
    return {key: dataset[key] for key in _SPLIT_KEYS if key in dataset}
