"""Images of a config's splits, as its model is tested on them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset, DataLoader, Subset

from mmdge.utils import UserError
from mmdge.utils.checks import type_name

# What tells the splits of a data set apart.
_SPLIT_KEYS = ('data_root', 'ann_file', 'data_prefix', 'split')


def image_loader(
    cfg: Config, split: str = 'val', number: int | None = None
) -> DataLoader:
    """Load images one by one, through the pipeline of the validation.

    Args:
        cfg (Config): With a ``val_dataloader``.
        split (str): ``'val'`` or ``'train'``, then of every data set inside
            its wrappers. Defaults to ``'val'``.
        number (int, optional): Of images, chosen at random, always the same.
            Defaults to None: all.

    Raises:
        UserError: If there is no such split to load.
    """
    for needed in ('val', split):
        if not (cfg.get(f'{needed}_dataloader') or {}).get('dataset'):
            how = '' if needed == 'val' else '; take those of the validation'
            raise UserError(f'{cfg.filename} has no {needed}_dataloader{how}')
    loader = dict(
        copy.deepcopy(cfg.val_dataloader),
        batch_size=1,
        num_workers=0,
        persistent_workers=False,
    )
    for key in ('prefetch_factor', 'batch_sampler'):
        loader.pop(key, None)
    dataset = loader['dataset']
    if split == 'val':
        dataset = DATASETS.build(dataset)
    else:
        like, parts = next(plain_datasets(dataset)), []
        for part in plain_datasets(cfg.train_dataloader.dataset):
            config = _tested_like(like, part)
            if config not in parts:  # one that is there to weigh double
                parts.append(config)
        parts = [DATASETS.build(config) for config in parts]
        dataset = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    if number is not None and number < len(dataset):
        chosen = random.Random(0).sample(range(len(dataset)), number)
        dataset = Subset(dataset, chosen)  # MMEngine's knows no mixtures
    return Runner.build_dataloader(dict(loader, dataset=dataset))


def plain_datasets(config: Mapping) -> Iterator[Mapping]:
    """The data sets inside wrappers: repeated, mixed, concatenated, ..."""
    inside = config.get('datasets') or [config.get('dataset')]
    if inside == [None]:
        yield config
    else:
        for part in inside:
            yield from plain_datasets(part)


def _tested_like(like: Mapping, part: Mapping) -> dict:
    """A data set of the training as that of the validation is tested."""
    if type_name(part) != type_name(like):  # which may not have its entries
        return dict(part, pipeline=like.get('pipeline', []), test_mode=True)
    shared = {k: v for k, v in like.items() if k not in _SPLIT_KEYS}
    return {**shared, **{k: part[k] for k in _SPLIT_KEYS if k in part}}
