"""What ``tools/train.py`` and ``tools/test.py`` share.

Everything here works for mmdet, mmseg and mmpretrain alike, because all
three run through MMEngine's Runner. The checks come before anything is built
or written, so that a wrong path costs a second and leaves nothing behind.
"""

import argparse
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .errors import UserError

# How to get what is missing, by the first folder that names it.
_SOURCES = {
    'shapes': 'make it with `python tools/dataset_converters/make_shapes.py`',
    'coco': 'download it from https://cocodataset.org/#download and unpack '
    'it as data/coco',
    'ade': 'download https://data.csail.mit.edu/places/ADEchallenge/'
    'ADEChallengeData2016.zip and unpack it as data/ade',
}

# Rank, world size and local rank, as each launcher names them.
_LAUNCHER_ENV = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}


class _CfgOptions(DictAction):
    """``key=value`` pairs, with a usage error where mmengine has none."""

    def __call__(self, parser, *args, **kwargs):
        try:
            super().__call__(parser, *args, **kwargs)
        except (ValueError, AssertionError) as err:
            parser.error(f'--cfg-options takes key=value pairs: {err}')


def build_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser with the options that both tools take.

    Args:
        description: What the tool does, for ``--help``.

    Returns:
        A parser with ``config``, ``--work-dir``, ``--cfg-options``,
        ``--launcher`` and ``--local_rank``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='path of the config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: the one in the '
        'config, else work_dirs/<config-stem>)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_CfgOptions,
        metavar='KEY=VALUE',
        help='change entries of the config, e.g. train_cfg.max_epochs=1 '
        'model.backbone.price=0.1; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', *_LAUNCHER_ENV],
        default='none',
        help='who started the processes (default: none, a single one)',
    )
    # Older launchers hand the rank over as an argument, newer ones as a
    # variable; the Runner reads the variable.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help=argparse.SUPPRESS,
    )
    return parser


def load_config(
    path: str | os.PathLike,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config file and settle what the command line says about it.

    Args:
        path: The config file (.py, .json or .yaml).
        cfg_options: Dotted keys and their new values. Default: none.
        work_dir: Output folder. Default: the config's own, else
            ``work_dirs/<config-stem>``.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'. Default: 'none'.

    Returns:
        The config, with ``work_dir`` and ``launcher`` set.

    Raises:
        UserError: If the file or one of its ``_base_`` files cannot be read,
            or an option does not fit the config.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f'config not found: {path.absolute()} is not a file; the configs '
            'that come with mmdge are in configs/'
        )
    try:
        cfg = Config.fromfile(path)
    except OSError as err:
        raise UserError(f'cannot read the config {path}: {err}') from err
    try:
        cfg.merge_from_dict(dict(cfg_options or {}))
    except (KeyError, IndexError, TypeError) as err:
        raise UserError(
            f'--cfg-options does not fit {path}: {err.args[0]}'
        ) from err
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = os.fspath(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', path.stem)
    _fill_dataloaders(cfg)
    return cfg


def check_checkpoint(path: str | os.PathLike, resume: bool = False) -> None:
    """Make sure that a checkpoint is there, whole, and holds weights.

    The file is unpickled, as MMEngine will do: open only what you trust.

    Args:
        path: A local file, or an address such as ``https://...`` or
            ``torchvision://resnet50``, which is let through.
        resume: Whether the state of the training is needed as well.
            Default: False.

    Raises:
        UserError: If the file is missing, cut off, or something else.
    """
    if '://' in os.fspath(path):
        return
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise UserError(
            f'checkpoint not found: {path} is not a file; check the path, or '
            'train one first (tools/train.py writes to '
            'work_dirs/<config-stem>)'
        )
    try:
        # Mapped, not read: only the old format without an archive must be
        # loaded as a whole to see its end.
        checkpoint = torch.load(
            path,
            map_location='cpu',
            mmap=zipfile.is_zipfile(path),
            weights_only=False,
        )
    except Exception as err:  # whatever a broken pickle may raise
        reason = f'{type(err).__name__}: {err}'.splitlines()[0]
        raise UserError(
            f'cannot read the checkpoint {path} ({path.stat().st_size} '
            'bytes): it is cut off or no PyTorch checkpoint; copy or '
            f'download it again ({reason[:120]})'
        ) from err
    if not _holds_weights(checkpoint):
        raise UserError(
            f'the file {path} holds no weights but '
            f'{_describe(checkpoint)}; name a checkpoint of this model'
        )
    if resume and not {'meta', 'optimizer'} <= checkpoint.keys():
        raise UserError(
            f'cannot resume from {path}: it holds weights but not the state '
            'of a training; start from it with '
            f'--cfg-options load_from={path}'
        )


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
    for _, node in _walk(cfg.get('model')):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            check_checkpoint(node['checkpoint'])


def check_datasets(cfg: Config, splits: Iterable[str]) -> None:
    """Make sure that the files of the data sets are there.

    Looks at ``data_root``, ``ann_file`` and ``data_prefix`` of each data set
    (inside wrappers too) and at ``ann_file`` of the evaluators. A split that
    the config does not have is passed over.

    Args:
        cfg: The config of the run.
        splits: Of 'train', 'val' and 'test', those that the run needs.

    Raises:
        UserError: If something is missing: where it was looked for, and how
            to get it.
    """
    for split in splits:
        loader = f'{split}_dataloader'
        for key, node in _walk(cfg.get(loader), loader):
            if 'dataset' in node or 'datasets' in node:
                continue  # a loader or a wrapper: what it wraps comes next
            root = node.get('data_root') or ''
            if _fetches_itself(node):
                continue
            for path in _dataset_paths(node):
                _check_data(split, path, root, f'{key}.data_root')
        evaluator = f'{split}_evaluator'
        for key, node in _walk(cfg.get(evaluator), evaluator):
            if isinstance(node.get('ann_file'), str):
                _check_data(split, node['ann_file'], '', f'{key}.ann_file')


def init_cpu_distributed(cfg: Config) -> bool:
    """Open the process group where MMEngine cannot: without a GPU.

    MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` whatever the
    backend, but leaves an open group alone. On a machine without an
    accelerator this opens a gloo group and changes the config to fit: the
    model wrapper gets no device ids, and SyncBN, which has no CPU kernel,
    becomes BN. Call it before the Runner is built; on a GPU it only checks
    that there are as many as processes.

    Args:
        cfg: The config of the run; ``cfg.launcher`` says who started it.

    Returns:
        Whether a group was opened.

    Raises:
        UserError: If the launcher's variables are missing, or a process has
            no GPU of its own.
    """
    if cfg.launcher == 'none':
        return False
    if torch.cuda.is_available():
        wanted = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        if wanted > torch.cuda.device_count():
            raise UserError(
                f'{wanted} processes were started but this machine has '
                f'{torch.cuda.device_count()} GPU(s); ask for as many '
                'processes as GPUs'
            )
        return False
    if get_device() != 'cpu':
        return False

    source = _LAUNCHER_ENV[cfg.launcher]
    needed = [*source, 'MASTER_ADDR']
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {cfg.launcher} needs {", ".join(missing)} in the '
            'environment; start with tools/dist_train.sh or '
            'tools/dist_test.sh, or drop --launcher'
        )
    for name, value in zip(_LAUNCHER_ENV['pytorch'], source, strict=True):
        os.environ[name] = os.environ[value]
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('gloo')

    wrapper = cfg.setdefault('model_wrapper_cfg', None)
    if wrapper is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    elif 'FullySharded' not in str(wrapper.get('type')):
        wrapper.setdefault('device_ids', None)
    _replace_sync_bn(cfg)
    return True


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or the one that ``runner_type`` names."""
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def run_tool(main: Callable[[], None]) -> int:
    """Run a tool and turn its user errors into one line.

    Args:
        main: The tool, without arguments.

    Returns:
        The exit code: 0, or 2 after a :class:`UserError`.
    """
    try:
        main()
    except UserError as err:
        print(f'error: {err}', file=sys.stderr, flush=True)
        return 2
    # Only after success: with a rank lost, this would wait for it.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _walk(node: Any, key: str = '') -> Iterator[tuple[str, Mapping]]:
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
        yield from _walk(child, f'{key}.{name}' if key else str(name))


def _fill_dataloaders(cfg: Config) -> None:
    """Give mmpretrain's loaders the defaults that its own tools give."""
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is not None:
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault(
                'persistent_workers', loader.get('num_workers', 0) > 0
            )


def _replace_sync_bn(cfg: Config) -> None:
    """Use BN for SyncBN, and say so."""
    found = [
        node
        for _, node in _walk(cfg.get('model'))
        if node.get('type') in ('SyncBN', 'MMSyncBN')
    ]
    for node in found:
        node['type'] = 'BN'
    if found and torch.distributed.get_rank() == 0:
        print_log('no GPU: SyncBN becomes BN, statistics are per process')


def _holds_weights(checkpoint: Any) -> bool:
    """Whether a dict holds tensors, or a dict of tensors."""
    if not isinstance(checkpoint, Mapping):
        return False
    inner = [v for v in checkpoint.values() if isinstance(v, Mapping)]
    return any(
        isinstance(value, torch.Tensor)
        for entries in (checkpoint, *inner)
        for value in entries.values()
    )


def _describe(checkpoint: Any) -> str:
    """Name what was found instead of weights."""
    if not isinstance(checkpoint, Mapping):
        return f'one object of type {type(checkpoint).__name__}'
    keys = ', '.join(map(str, list(checkpoint)[:5]))
    return f'a dict with the keys: {keys}' if keys else 'an empty dict'


def _fetches_itself(dataset: Mapping) -> bool:
    """Whether a data set of mmpretrain downloads its own files."""
    name = str(dataset.get('type')).rsplit('.', 1)[-1]
    kinds = ('MNIST', 'FashionMNIST', 'CIFAR10', 'CIFAR100')
    return name in kinds and dataset.get('download', True)


def _dataset_paths(dataset: Mapping) -> Iterator[str]:
    """Yield the paths a data set reads, joined as MMEngine joins them."""
    root = dataset.get('data_root') or ''
    if root:
        yield root
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    files = dataset.get('ann_file') or []
    for path in [*([files] if isinstance(files, str) else files), *prefixes]:
        if isinstance(path, str) and path:
            yield os.path.join(root, path)


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
