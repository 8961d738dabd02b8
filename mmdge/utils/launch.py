"""What ``tools/train.py`` and ``tools/test.py`` share.

Everything here works for mmdet, mmseg and mmpretrain alike, because all
three run through MMEngine's Runner.
"""

import argparse
import copy
import difflib
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from mmdge._requirements import HOSTS, missing_message
from mmdge.evaluation import with_metrics

from . import checks
from .checks import walk
from .errors import UserError
from .mistakes import in_one_line
from .safe_load import use_safe_loading

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


def config_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of a tool that reads a config.

    Args:
        description: What the tool does, for ``--help``.

    Returns:
        A parser with ``config`` and ``--cfg-options``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='path of the config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_CfgOptions,
        metavar='KEY=VALUE',
        help='change entries of the config, e.g. train_cfg.max_epochs=1 '
        'model.backbone.price=0.1; lists as key="[a,b]"',
    )
    return parser


def build_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of a tool that starts a run.

    Args:
        description: What the tool does, for ``--help``.

    Returns:
        The one of :func:`config_parser` with ``--work-dir``, ``--launcher``
        and ``--local_rank``.
    """
    parser = config_parser(description)
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: the one in the '
        'config, else work_dirs/<config-stem>)',
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
            its host is not installed, or an option does not fit the config.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f'config not found: {path.absolute()} is not a file; the configs '
            'that come with mmdge are in configs/'
        )
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as err:
        raise UserError(_host_missing(path, err)) from err
    except Exception as err:  # a config is code, and may raise anything
        raise UserError(
            f'cannot read the config {path}: {type(err).__name__}: {err}'
        ) from err
    scope = cfg.get('default_scope')
    if scope in HOSTS and find_spec(scope) is None:
        raise UserError(missing_message(scope, str(path)))
    _check_option_names(cfg, cfg_options or {}, path)
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


def host_of(cfg: Config) -> str | None:
    """The host whose model a config builds, whatever its default scope."""
    if cfg.get('default_scope') in HOSTS:
        return cfg.default_scope
    kind = (cfg.get('model') or {}).get('type', '')
    # A class, or one's own that inherits from a host's.
    named = [c.__module__ for c in getattr(kind, '__mro__', ())] or [kind]
    roots = [name.partition('.')[0] for name in named]
    return next((root for root in roots if root in HOSTS), None)


def use_scope(cfg: Config) -> None:
    """Build what a config names without a scope as its run would."""
    init_default_scope(cfg.get('default_scope') or host_of(cfg) or 'mmdge')


def hooks_of(cfg: Config) -> list[Mapping[str, Any]]:
    """The hooks that a config has, by default or of its own."""
    default = (cfg.get('default_hooks') or {}).values()
    return [*filter(None, default), *(cfg.get('custom_hooks') or [])]


def drop_hooks(cfg: Config, goes: Callable[[str], bool]) -> None:
    """Take the hooks out of a config of whose type's name ``goes`` is true."""
    default, own = cfg.get('default_hooks') or {}, cfg.get('custom_hooks')
    for key, hook in list(default.items()):
        if hook and goes(checks.type_name(hook)):
            del default[key]
    if own:
        cfg.custom_hooks = [h for h in own if not goes(checks.type_name(h))]


def set_hook(cfg: Config, name: str, hook: Mapping[str, Any]) -> None:
    """Give a config a hook among its ``default_hooks``."""
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    cfg.default_hooks[name] = hook


def _check_option_names(
    cfg: Config, options: Mapping[str, Any], path: Path
) -> None:
    """Refuse an entry that nobody reads, but that is nearly another's name."""
    known = {*cfg.keys(), *inspect.signature(Runner.__init__).parameters}
    for option in options:
        name = option.partition('.')[0]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if name not in known and near:
            raise UserError(
                f'--cfg-options {option}: {path} has no entry {name!r}, and '
                f'nothing reads it; is it {near[0]!r}?'
            )


def init_cpu_distributed(cfg: Config) -> bool:
    """Open the process group where MMEngine cannot: without a GPU.

    MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` whatever the
    backend, but leaves an open group alone. On a machine without an
    accelerator this opens a gloo group and changes the config to fit: the
    model wrapper gets no device ids, and SyncBN, which has no CPU kernel,
    becomes BN. Call it before the Runner is built; on a GPU it only checks
    what the launcher left, and that there are as many as processes.

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
    source = _LAUNCHER_ENV[cfg.launcher]
    # On GPUs MMEngine finds the address that Slurm and MPI leave out.
    own = get_device() == 'cpu' or cfg.launcher == 'pytorch'
    needed = [*source, 'MASTER_ADDR'] if own else source
    missing = [name for name in needed if name not in os.environ]
    if missing:
        kind, first = 'dist', ''
        if cfg.launcher == 'slurm':  # which does not set the address
            kind, first = 'slurm', 'export MASTER_ADDR=<first node> and '
        raise UserError(
            f'--launcher {cfg.launcher} needs {", ".join(missing)} in the '
            f'environment; {first}start with tools/{kind}_train.sh or '
            f'tools/{kind}_test.sh, or drop --launcher'
        )
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


def do_without_amp(cfg: Config) -> None:
    """Train in full precision where MMEngine has no mixed one: on a CPU.

    Args:
        cfg: The config of the run; its ``optim_wrapper.type`` is changed.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper['type'] = 'OptimWrapper'
        print_log('no GPU: training in full instead of mixed precision')


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or the one that ``runner_type`` names.

    Raises:
        UserError: If there is no model, or there can be no work dir.
    """
    if cfg.get('model') is None:
        raise UserError(
            f"the config {cfg.filename} has no entry 'model'; inherit one by "
            '_base_, or name the config of a training'
        )
    checks.make_folder(cfg.work_dir, '--work-dir')
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None:
            cfg[key] = with_metrics(cfg[key])
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def build_model(
    cfg: Config, checkpoint: str | os.PathLike | None = None
) -> nn.Module:
    """Build the model of a config, ready for evaluation.

    Args:
        cfg: The config, which stays as it is; no ``init_cfg`` is read.
        checkpoint: Weights of the model, or of its backbone alone, in any
            layout that the backbone knows. Default: random weights.

    Returns:
        The model, on the machine's device.

    Raises:
        UserError: If the file is missing, broken, not safe or no fit.
    """
    use_scope(cfg)
    config = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):  # where mmpretrain has it, as the Runner
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(config)
    if checkpoint is not None:
        part, prefix = model, r'^module\.'
        # Models of several, as a teacher and its student, load as a whole.
        alone = hasattr(model, 'backbone')
        if alone and not checks.is_whole_model(checkpoint, model):
            print_log(
                f'from {checkpoint} the backbone alone is loaded; it does not '
                'hold the rest of this model, which stays as it was built',
                logger='current',
            )
            part, prefix = model.backbone, r'^(module\.)?(backbone\.)?'
        load_checkpoint(
            part,
            os.fspath(checkpoint),
            map_location='cpu',
            revise_keys=[(prefix, '')],
        )
    return model.to(get_device()).eval()


def run_tool(main: Callable[[], None]) -> int:
    """Run a tool and turn its user errors into one line.

    What it loads, it loads safely. With ``MMDGE_TRACEBACK=1`` in the
    environment every error keeps its traceback.

    Args:
        main: The tool, without arguments.

    Returns:
        The exit code: 0, 2 after what the user can mend, or 130 after Ctrl-C.
    """
    use_safe_loading()
    # A log that cannot be written is no reason for a traceback per line.
    logging.raiseExceptions = False
    try:
        main()
    except Exception as err:
        said = in_one_line(err)
        if said is None or os.environ.get('MMDGE_TRACEBACK'):
            raise
        print(f'error: {said}', file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(
            'interrupted; a training goes on with --resume',
            file=sys.stderr,
            flush=True,
        )
        return 130
    # Only after success: with a rank lost, this would wait for it.
    if torch.distributed.is_initialized():
        # A sharded model, a cycle of references, keeps the group alive, whose
        # threads then abort the interpreter on its way out.
        gc.collect()
        torch.distributed.destroy_process_group()
    return 0


def _host_missing(path: Path, err: ModuleNotFoundError) -> str:
    """Say what to do if a ``_base_`` of a host is not found."""
    # MMEngine names the distribution, which is not the package's name.
    name = str(err).split(' is not installed')[0]
    host = {'mmsegmentation': 'mmseg'}.get(name, name)
    if host not in HOSTS:
        return f'cannot read the config {path}: {err}'
    if find_spec(host) is not None:
        return (
            f'{path} inherits from {host}:: and MMEngine finds that only in a '
            f'distribution named {name}; with a fork of it, inherit by a path'
        )
    return missing_message(host, str(path))


def _fill_dataloaders(cfg: Config) -> None:
    """Give mmpretrain's loaders the defaults that its own tools give."""
    if host_of(cfg) != 'mmpretrain':
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
        for _, node in walk(cfg.get('model'))
        if node.get('type') in ('SyncBN', 'MMSyncBN')
    ]
    for node in found:
        node['type'] = 'BN'
    if found and torch.distributed.get_rank() == 0:
        print_log('no GPU: SyncBN becomes BN, statistics are per process')
