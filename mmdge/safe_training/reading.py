"""Read checkpoints without running the code that they may carry.

A checkpoint is a pickle, and a pickle may call any function. PyTorch's
``weights_only`` lets through what tensors need; here a few classes more, of
which training states are made. MMEngine opens a file without it where that
does not suffice, and has ``getattr`` among what it lets through, from which
there is a way to every function; so the tools put this reader in its place.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader, checkpoint

from mmdge.errors import UserError

_STATISTICS = ('min', 'max', 'mean', 'current')


def _statistic(owner: Any, name: str) -> Callable:
    """What ``getattr`` is needed for: a log's own statistics."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError('Unsupported global: GLOBAL getattr')
    return getattr(owner, name)


def _harmless() -> list:
    """Classes and functions that training states are made of."""
    # numpy 1 has a folder _core as well, in which next to nothing is.
    core = np.core if np.__version__.startswith('1.') else np._core
    multiarray = core.multiarray
    kinds = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'
    return [
        argparse.Namespace,  # the arguments of a training
        HistoryBuffer,
        (_statistic, 'builtins.getattr'),
        slice,
        np.dtype,
        np.ndarray,
        *{type(np.dtype(kind)) for kind in kinds},
        *(
            (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')  # numpy 1 and 2
            for name in ('_reconstruct', 'scalar')
        ),
    ]


def read_checkpoint(
    path: str | os.PathLike,
    map_location: Any = 'cpu',
    mmap: bool = False,
) -> Any:
    """Read a local checkpoint; run no code of its.

    Args:
        path: The file.
        map_location: See :func:`torch.load`. Default: 'cpu'.
        mmap: Map tensors instead of reading them, if the format allows.
            Default: False.

    Returns:
        What the file holds.

    Raises:
        UserError: If the file is missing or broken, or asks for other code.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(
            f'checkpoint not found: {path} is not a file; check the path, or '
            'train one first (tools/train.py writes to '
            'work_dirs/<config-stem>)'
        )
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(
                path,
                map_location=map_location,
                # Only archives can be mapped.
                mmap=mmap and zipfile.is_zipfile(path),
                weights_only=True,
            )
    except Exception as err:  # whatever a broken pickle may raise
        with open(path, 'rb') as file:
            # As PyTorch's files start; words may look like pickles.
            if file.read(1) in (b'\x80', b'P'):
                _refuse_code(path, err)
        raise UserError(
            f'cannot read the checkpoint {path} ({os.path.getsize(path)} '
            'bytes): it is cut off or no PyTorch checkpoint; copy or '
            f'download it again ({_reason(err)})'
        ) from err


def open_checkpoint(path: str | os.PathLike) -> Mapping[str, Any]:
    """Read a local file that holds weights; run no code of its.

    Args:
        path: The file, which is mapped where its format allows: tensors are
            read when they are used.

    Returns:
        What it holds: tensors, or a dict of tensors, among the values.

    Raises:
        UserError: If the file is missing, cut off, or something else, or if
            reading it would run code.
    """
    loaded = read_checkpoint(path, mmap=True)
    entries = loaded if isinstance(loaded, Mapping) else {}
    weights = entries.get('state_dict', entries)
    weights = weights if isinstance(weights, Mapping) else {}
    inner = [v for v in weights.values() if isinstance(v, Mapping)]
    if not any(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for group in (weights, *inner)
        for name, value in group.items()
    ):
        raise UserError(
            f'the file {path} holds no weights but {describe(loaded)}; name '
            'a checkpoint of this model'
        )
    return loaded


def describe(loaded: Any) -> str:
    """Name what a file holds, in the place of weights."""
    if not isinstance(loaded, Mapping):
        return f'one object of type {type(loaded).__name__}'
    keys = ', '.join(map(str, list(loaded)[:5]))
    return f'a dict with the keys: {keys}' if keys else 'an empty dict'


def use_safe_loading() -> None:
    """Let MMEngine read files and downloads like this, in this process."""
    # For what is neither, as from s3; who sets the opposite means it.
    if 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ:
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    else:
        print_log(
            'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: checkpoints other than '
            'local files and downloads may run code',
            level=logging.WARNING,
        )
    register = CheckpointLoader.register_scheme
    register('', _load_from_local, force=True)
    register(('http://', 'https://'), _load_from_http, force=True)


def _load_from_local(filename: str, map_location: Any) -> Any:
    """Load a file for MMEngine."""
    return _without_config(read_checkpoint(filename, map_location))


def _load_from_http(filename: str, map_location: Any = None) -> Any:
    """Download a file, unless it was before, and load it for MMEngine."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            return _without_config(
                checkpoint.load_from_http(filename, map_location)
            )
    except Exception as err:  # whatever a broken pickle may raise
        _refuse_code(filename, err)
        raise UserError(
            f'cannot get the checkpoint {filename}; download it by hand and '
            'name the file, and remove what there may be of it in '
            f'{torch.hub.get_dir()}/checkpoints ({_reason(err)})'
        ) from err


def _without_config(loaded: Any) -> Any:
    """Take out what MMEngine would run on resuming, a config as text.

    Its trainings don't write this entry; those before MMEngine did.
    """
    if isinstance(loaded, dict) and isinstance(loaded.get('meta'), dict):
        loaded['meta'].pop('config', None)
    return loaded


def _refuse_code(source: str, err: Exception) -> None:
    """Raise if what a file asked for was code."""
    found = re.search(r'GLOBAL (\S+)|(TorchScript)', str(err))
    if found:
        raise UserError(
            f'the checkpoint {source} is refused: reading it would run code '
            f'({found[1] or found[2]}), and only tensors and plain values are '
            'read; where you trust it, save its weights alone: '
            'torch.save(model.state_dict(), ...)'
        ) from err


def _reason(err: Exception) -> str:
    """What PyTorch says, without what it says about ``weights_only``."""
    found = re.search(r'WeightsUnpickler error:\s*(.+)', str(err))
    text = found[1] if found else str(err).partition('\n')[0]
    return f'{type(err).__name__}: {text[:120]}'
