"""Is what a run needs really there?

These checks come before anything is built or written, so that a wrong path
costs a second and leaves nothing behind.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmengine import fileio
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader
from torch import nn

from mmdge.errors import UserError
from mmdge.safe_training import open_checkpoint
from mmdge.safe_training.reading import describe

# What MMEngine resumes with; trainings before it wrote no message_hub.
_STATE = {'meta', 'optimizer', 'message_hub'}
# Images that are looked at for an object.
_LOOKED_AT = 200
# Data sets of mmpretrain that download their own files.
_FETCHED = ('MNIST', 'FashionMNIST', 'CIFAR10', 'CIFAR100')
# How to get what is missing, by the first folder that names it.
_SOURCES = {
    'shapes': 'make it with `python tools/dataset_converters/make_shapes.py`',
    '(camvid|bccd)': 'get it as projects/study/README.md tells',
    '(coco|ade|imagenet)': 'get it as docs/training.md tells',
}


def check_checkpoint(
    path: str | os.PathLike, resume: bool = False, prefix: str | None = None
) -> None:
    """Make sure that a checkpoint is there, whole, safe, and holds weights.

    Args:
        path: A local file, or an address such as ``https://...`` or
            ``torchvision://resnet50``, which is let through.
        resume: Whether the state of the training is needed as well.
            Default: False.
        prefix: How the entries begin that are needed. Default: any.

    Raises:
        UserError: If the file is missing, cut off, or something else, or if
            reading it would run code.
    """
    if '://' in os.fspath(path):
        return
    path = Path(path).expanduser().absolute()
    checkpoint = open_checkpoint(path)
    if resume and not checkpoint.keys() >= _STATE:
        raise UserError(
            f'cannot resume from {path}: it holds weights but not the state '
            'of a training; start from it with '
            f'--cfg-options load_from={path}'
        )
    weights = checkpoint.get('state_dict', checkpoint)
    if prefix and not any(str(key).startswith(prefix) for key in weights):
        raise UserError(
            f'the file {path} holds nothing below {prefix!r} but '
            f'{describe(weights)}; leave out the prefix of init_cfg, or name '
            'a checkpoint of a whole model'
        )


def check_same_model(path: str | os.PathLike, model: nn.Module) -> None:
    """Make sure that a training can go on with this model.

    MMEngine loads what fits, and the optimizer fails over the rest.

    Raises:
        UserError: If names or shapes of the weights differ.
    """
    if '://' in os.fspath(path):
        return
    model = model.module if is_model_wrapper(model) else model
    saved = _shapes(open_checkpoint(path)['state_dict'])
    own = _shapes(model.state_dict())
    for key in saved | own:
        there, here = (shapes.get(key, 'missing') for shapes in (saved, own))
        if there != here:
            raise UserError(
                f'cannot resume from {path}, which is of another model: '
                f'{key} is {there} there and {here} here; resume with the '
                'config of that training, or start from its weights with '
                f'--cfg-options load_from={path}'
            )


def is_whole_model(path: str | os.PathLike, model: nn.Module) -> bool:
    """Whether a checkpoint holds a model, and not its backbone alone.

    A classifier's or a detector's of other classes has a backbone for the
    model, too, and a neck or head that does not fit.
    """
    if '://' in os.fspath(path):
        checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    else:
        checkpoint = open_checkpoint(path)
    shapes = _shapes(checkpoint.get('state_dict', checkpoint))
    # As PyTorch's parallel wrapper saves it, too.
    shapes = {key.removeprefix('module.'): shapes[key] for key in shapes}
    return any(key.startswith('backbone.') for key in shapes) and all(
        shapes.get(name) == tuple(weight.shape)
        for name, weight in model.named_parameters()
        if not name.startswith('backbone.')
    )


def _shapes(weights: Mapping) -> dict[str, tuple[int, ...] | None]:
    """The shape of each entry, by name; None of what is no tensor."""
    return {
        str(key): tuple(value.shape) if hasattr(value, 'shape') else None
        for key, value in weights.items()
    }


def check_output(path: str | os.PathLike, option: str) -> None:
    """Make sure that there is a folder for a file to be written.

    Args:
        path: The file.
        option: What it was given as, for the message.

    Raises:
        UserError: If the folder is not there.
    """
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f'{option} {path}: there is no such folder')


def check_checkpoints(cfg: Config) -> None:
    """Check every checkpoint that the config names.

    These are ``load_from`` and the ``init_cfg`` entries of the model.

    Args:
        cfg: The config of the run.

    Raises:
        UserError: As :func:`check_checkpoint`.
    """
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, resume=bool(cfg.get('resume')))
    for _, node in walk(cfg.get('model')):
        known = type_name(node) in ('Pretrained', 'PretrainedInit')
        if known and node.get('checkpoint'):
            check_checkpoint(node['checkpoint'], prefix=node.get('prefix'))


def type_name(node: Mapping, default: str = 'None') -> str:
    """The name, without a scope, of what a config's ``type`` is or names."""
    kind = node.get('type') or default
    return str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]


def check_datasets(cfg: Config, splits: Iterable[str]) -> None:
    """Make sure that the files of the data sets are there.

    Looks at ``data_root``, ``ann_file`` and ``data_prefix`` of each data set
    (inside wrappers too). A split that the config does not have is passed
    over, as is what other ``backend_args`` than for local files read.

    Raises:
        UserError: If something is missing: where it was looked for, and how
            to get it.
    """
    for split in splits:
        loader = f'{split}_dataloader'
        for key, node in walk(cfg.get(loader), loader):
            if 'dataset' in node or 'datasets' in node:
                continue  # a loader or a wrapper: what it wraps comes next
            backend = (node.get('backend_args') or {}).get('backend', 'local')
            fetched = type_name(node) in _FETCHED and node.get(
                'download', True
            )
            if backend in ('local', 'disk') and not fetched:
                root = node.get('data_root') or ''
                for path in _dataset_paths(node, root):
                    _check_data(split, path, root, f'{key}.data_root')


def check_classes(dataset: Any) -> None:
    """Make sure that a data set of objects has the classes of the config.

    Those of other names, or in another case, are left out without a word, and
    what trains on nothing learns nothing.

    Args:
        dataset: Any that was built, or a wrapper of others.

    Raises:
        UserError: If annotations in the format of COCO or Pascal VOC have
            none of the classes, or one in another case: which they have.
    """
    for inside in ('datasets', 'dataset'):
        if other := getattr(dataset, inside, None):
            for part in other if inside == 'datasets' else [other]:
                check_classes(part)
            return
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if not classes or not hasattr(dataset, 'get_data_info'):
        return
    number = min(len(dataset), _LOOKED_AT)
    infos = [dataset.get_data_info(i) for i in range(number)]
    found = _annotated_classes(dataset, infos)
    missing = [name for name in classes if name not in found]
    others = sorted(found.difference(classes))
    folded = {name.casefold() for name in others}
    alike = [name for name in missing if name.casefold() in folded]
    none = len(missing) == len(classes)
    if found and (none or alike):
        here, there = (str(n[:5])[1:-1] for n in (alike or missing, others))
        raise UserError(
            f'{dataset.ann_file} has {"none" if none else "not all"} of the '
            f'classes of the config: {here} here, but {there} there; set '
            'metainfo=dict(classes=(...)) of the data set, and num_classes of '
            'the heads'
        )
    # In other data sets an image has one class, or a map of them.
    objects = [info.get('instances', info.get('gt_label')) for info in infos]
    if not any(objects) and all(isinstance(some, list) for some in objects):
        print_log(
            f'none of the first {number} images of {dataset.ann_file} has an '
            'object of the classes of the config',
            level=logging.WARNING,
        )


def check_filtered_classes(loader: Mapping) -> None:
    """Check the classes of data sets of which a filter leaves nothing.

    MMEngine cannot build these, and does not say why.

    Args:
        loader: The config of a loader.

    Raises:
        UserError: As :func:`check_classes`.
    """
    for _, node in walk(loader):
        if node.get('filter_cfg'):
            whole = dict(node, filter_cfg=None, pipeline=[])
            check_classes(DATASETS.build(whole))


def _annotated_classes(dataset: Any, infos: list[dict]) -> set[str]:
    """The names of classes in annotations of COCO's or Pascal VOC's format.

    Returns:
        Those of the whole file, where some may be missing, or of the images
        that were looked at; empty where the format has none.
    """

    def read(path: str) -> bytes:
        backend_args = getattr(dataset, 'backend_args', None)
        return fileio.get(path, backend_args=backend_args)

    file, classes = str(dataset.ann_file), dataset.metainfo['classes']
    known = getattr(dataset, 'cat_ids', None)
    if known is not None:
        if len(known) == len(classes) or not file.endswith('.json'):
            return set(classes)
        categories = json.loads(read(file))['categories']
        return {category['name'] for category in categories}
    return {
        name.text
        for path in filter(None, (info.get('xml_path') for info in infos))
        for name in ElementTree.fromstring(read(path)).iterfind('object/name')
    }


def walk(node: Any, key: str = '') -> Iterator[tuple[str, Mapping]]:
    """Yield every dict of a config with its dotted key, outermost first."""
    if isinstance(node, Mapping):
        yield key, node
        # A copy, so that the caller may change what it is handed.
        children = list(node.items())
    elif isinstance(node, (list, tuple)):
        children = list(enumerate(node))
    else:
        return
    for name, child in children:
        yield from walk(child, f'{key}.{name}' if key else str(name))


def _dataset_paths(dataset: Mapping, root: str) -> list[str]:
    """The paths that a data set reads, joined as MMEngine joins them."""
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    files = dataset.get('ann_file') or []
    files = [files] if isinstance(files, str) else files
    names = [n for n in (*files, *prefixes) if isinstance(n, str) and n]
    return [root] * bool(root) + [os.path.join(root, name) for name in names]


def _check_data(split: str, path: str, root: str, key: str) -> None:
    """Raise if a file of a data set is not there."""
    remote = '://' in path or re.match(r'(\w+:)?s3:', path)
    if remote or os.path.exists(path):
        return
    advice = [
        how
        for name, how in _SOURCES.items()
        if re.search(rf'(^|/){name}', root or path, re.IGNORECASE)
    ]
    advice.append(f'set its place with --cfg-options {key}=/path/to/it')
    raise UserError(
        f'{split} data not found: {os.path.abspath(path)} is not there; '
        + ', or '.join(advice)
    )
