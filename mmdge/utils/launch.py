"""What the tools share: they start runs and build models of any host."""

import argparse
import copy
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from torch import nn

from mmdge._requirements import HOSTS, missing_message
from mmdge.errors import UserError
from mmdge.evaluation import with_metrics
from mmdge.models import hosts
from mmdge.models.methods import Granularity, Method
from mmdge.safe_training import use_safe_loading

from .checks import is_whole_model, type_name, walk

# Rank, world size and local rank, as each launcher names them.
_LAUNCHER_ENV = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': tuple(
        f'OMPI_COMM_WORLD_{name}' for name in ('RANK', 'SIZE', 'LOCAL_RANK')
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
    """The parser of a tool that reads a config, with ``--cfg-options``."""
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
    """The parser of a tool that starts a run, of one process or many."""
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
    # Older launchers hand it over; all set the variable that is read.
    parser.add_argument(
        *('--local_rank', '--local-rank'),
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

    ``work_dir`` defaults to the config's own, else to
    ``work_dirs/<config-stem>``; it and ``launcher`` are set in what returns.

    Raises:
        UserError: If the file or one of its ``_base_`` files cannot be read,
            its host is not installed, or an option does not fit the config.
    """
    path = Path(path)
    try:
        cfg = Config.fromfile(path)
        host = host_of(cfg)
    except Exception as err:  # a config is code, and may raise anything
        raise UserError(
            f'cannot read the config {path}: {type(err).__name__}: {err}'
        ) from err
    if host and find_spec(host) is None:
        raise UserError(missing_message(host, str(path)))
    try:
        cfg.merge_from_dict(dict(cfg_options or {}))
    except (KeyError, IndexError, TypeError) as err:
        raise UserError(
            f'--cfg-options does not fit {path}: {err.args[0]}'
        ) from err
    cfg.launcher = launcher
    cfg.work_dir = os.fspath(
        work_dir or cfg.get('work_dir') or Path('work_dirs', path.stem)
    )
    if host_of(cfg) == 'mmpretrain':
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


def scope_of(cfg: Config) -> str:
    """The scope of the types in a config that name none."""
    return cfg.get('default_scope') or host_of(cfg) or 'mmdge'


def exchange_backbone(cfg: Config, method: type[Method] = Granularity) -> None:
    """Put the dynamic form of a host's own backbone in its place.

    It runs as its dense twin. Necks and heads stay as they are, and so does
    a backbone that is none of those which :mod:`mmdge.models.hosts` knows.

    Args:
        cfg: The config, which is changed. What its backbone would start
            from goes, because a checkpoint follows.
        method: Of the dynamic form. Default: Granularity.

    Raises:
        UserError: If there is no such form, or the backbone has settings
            that it lacks.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    try:
        ours = hosts.to_ours(backbone, scope_of(cfg), method)
    except UserError as err:
        raise UserError(f'{cfg.filename}: {err}') from err
    if ours is None:
        return
    print(f'{ours["type"]} stands for the backbone {type_name(backbone)}')
    model.backbone = ours
    if 'pretrained' in model:  # mmseg's way to name the backbone's weights
        model.pretrained = None


def hooks_of(cfg: Config) -> list[Mapping[str, Any]]:
    """The hooks that a config has, by default or of its own."""
    default = (cfg.get('default_hooks') or {}).values()
    return [*filter(None, default), *(cfg.get('custom_hooks') or [])]


def replace_hooks(cfg: Config, *old: str, **new: Mapping[str, Any]) -> None:
    """Take hooks out of a config and put others among its default ones.

    Args:
        cfg: The config, which is changed.
        *old: Names of those that go, such as ``'*EMAHook'``.
        **new: Those that come, by their keys in ``default_hooks``.
    """

    def stays(hook: Mapping[str, Any] | None) -> bool:
        name = type_name(hook or {})
        return not any(fnmatch(name, pattern) for pattern in old)

    default, own = cfg.get('default_hooks') or {}, cfg.get('custom_hooks')
    kept = {name: hook for name, hook in default.items() if stays(hook)}
    cfg.default_hooks = {**kept, **new}
    if own:
        cfg.custom_hooks = [hook for hook in own if stays(hook)]


def init_cpu_distributed(cfg: Config) -> bool:
    """Open the process group where MMEngine cannot: without a GPU.

    MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` whatever the
    backend, but leaves an open group alone. Without an accelerator this opens
    a gloo group and changes the config to fit: the model wrapper gets no
    device ids, and SyncBN, which has no CPU kernel, becomes BN.

    Returns:
        Whether a group was opened for ``cfg.launcher``.

    """
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return False
    for name, source in zip(
        _LAUNCHER_ENV['pytorch'], _LAUNCHER_ENV[cfg.launcher], strict=True
    ):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if 'FullySharded' not in str(wrapper.get('type')):
        wrapper.setdefault('device_ids', None)
    cfg.model_wrapper_cfg = wrapper
    _replace_sync_bn(cfg)
    return True


def do_without_amp(cfg: Config) -> None:
    """Train in full precision where MMEngine has no mixed one: on a CPU.

    Args:
        cfg: The config of the run; its ``optim_wrapper.type`` is changed.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper['type'] = 'OptimWrapper'
        print_log('no GPU: training in full instead of mixed precision')


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or the one that ``runner_type`` names.

    Raises:
        UserError: If there is no model.
    """
    if cfg.get('model') is None:
        raise UserError(
            f"the config {cfg.filename} has no entry 'model'; inherit one by "
            '_base_, or name the config of a training'
        )
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None:
            cfg[key] = with_metrics(cfg[key])
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


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
    # What has no scope is named as in its run.
    init_default_scope(scope_of(cfg))
    config = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):  # where mmpretrain has it, as the Runner
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(config)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model.to(get_device()).eval()


def load_weights(model: nn.Module, checkpoint: str | os.PathLike) -> bool:
    """Load weights of a model, or of its backbone alone.

    Args:
        model: Of any host.
        checkpoint: In any layout that the backbone knows.

    Returns:
        Whether the whole model was loaded.

    Raises:
        UserError: If the file is missing, broken, not safe or no fit.
    """
    part, prefix = model, r'^module\.'
    # Models of several, as a teacher and its student, load as a whole.
    whole = not hasattr(model, 'backbone') or is_whole_model(checkpoint, model)
    if not whole:
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
    return whole


def write_run(
    cfg: Config, model: nn.Module, checkpoint: Path, whole: bool = True
) -> Path:
    """Write a model and a config that tests it, or trains it further.

    Args:
        cfg: The config, which is changed to load the weights.
        model: With those weights.
        checkpoint: Where to write them; the config goes beside.
        whole: Whether all of the model is written, and not its backbone
            alone. Default: True.

    Returns:
        The config's path; what it runs goes to ``runs`` beside it.
    """
    part = model if whole else model.backbone
    save_checkpoint(
        dict(meta={}, state_dict=part.state_dict()),
        str(checkpoint),
        backend_args=dict(backend='mmdge.atomic'),
    )
    init = dict(type='Pretrained', checkpoint=str(checkpoint))
    # In a whole model are all weights; none need to be downloaded.
    cfg.model.backbone.init_cfg = None if whole else init
    if whole:
        cfg.load_from = str(checkpoint)
    imports = cfg.get('custom_imports') or dict(allow_failed_imports=False)
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    cfg.custom_imports = dict(imports, imports=sorted({'mmdge', *names}))
    # A runner writes the config it was given, options included, into its work
    # dir; this one must stay as it is.
    cfg.work_dir = str(checkpoint.parent / 'runs')
    path = checkpoint.with_suffix('.py')
    cfg.dump(path)
    return path


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
    except UserError as err:
        if os.environ.get('MMDGE_TRACEBACK'):
            raise
        print(f'error: {err}', file=sys.stderr, flush=True)
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


def _fill_dataloaders(cfg: Config) -> None:
    """Give mmpretrain's loaders the defaults that its own tools give."""
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
        # The last is what the classes of both are called.
        if type_name(node) in ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
    ]
    for node in found:
        node['type'] = 'BN'
    if found and torch.distributed.get_rank() == 0:
        print_log('no GPU: SyncBN becomes BN, statistics are per process')
