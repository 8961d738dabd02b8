"""What to say, in one line, of errors that the user can mend.

The hosts raise them deep inside, with a traceback of dozens of frames that
names neither the entry of the config nor the file. Where a traceback went
through tells both. What no rule knows keeps its traceback: it may be a bug.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import traceback
from types import FrameType
from typing import Any

import torch
from mmengine.registry import Registry
from mmengine.runner import Runner

from .errors import UserError

# A full disk, a quota, a limit.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
# What no file makes a loader raise: bugs, which only a traceback finds.
_BUGS = (NameError, ImportError)
_BUG_NAMES = 'NameError|UnboundLocalError|ImportError|ModuleNotFoundError'
# What a running model says of data that it was not made for.
_MISMATCHES = {
    r'Target -?\d+ is out of bounds': 'the annotations have a class that the '
    'model does not: set num_classes, or ignore_index and reduce_zero_label '
    'of the data set',
    r'Class values must be smaller than num_classes': 'the annotations have '
    'a class that the model does not: set num_classes',
    r'stack expects each tensor to be equal size': 'the samples of a batch '
    'differ in size: an image and its annotation do, or the pipeline lacks a '
    'Resize or a crop, or size_divisor the padding',
}


def in_one_line(err: Exception) -> str | None:
    """Say what is wrong and what to do.

    Args:
        err (Exception): What a tool has raised, with its traceback.

    Returns:
        str | None: One line; None if it isn't known to be a mistake.
    """
    if isinstance(err, UserError):
        return str(err)
    if isinstance(err, OSError) and err.errno in (*_NO_ROOM, errno.EROFS):
        return _of_writing(err)
    if isinstance(err, torch.OutOfMemoryError):
        return (
            f'{_text(err).partition(". ")[0]}. Lower the batch_size, train '
            'with --amp, or set with_cp=True of the backbone'
        )
    # Where it went through, the innermost last.
    frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__)]
    return (
        _of_loaders(err)
        or _of_loading(err, frames)
        or _of_the_config(err, frames)
        or _of_the_data(err, frames)
        or _of_mmdge(err, frames)
        # What may not be read is known by now.
        or _of_writing(err)
    )


def advice(err: OSError) -> str:
    """What to do about a file that cannot be written."""
    how = 'Make it writable' if err.errno in _FORBIDDEN else 'Make room'
    return f'{how}, and start again; a training goes on with --resume'


def _of_writing(err: Exception) -> str | None:
    """Of a file that cannot be written."""
    kinds = (*_NO_ROOM, *_FORBIDDEN)
    if not isinstance(err, OSError) or err.errno not in kinds:
        return None
    where = f' ({err.filename})' if err.filename else ''
    return f'{err.strerror}{where}. {advice(err)}'


def _text(err: Exception) -> str:
    """The last line of an error's text, which is the only one of most."""
    if isinstance(err, KeyError) and err.args:
        key = str(err.args[0])
        return key if ' ' in key else f'no {key!r}'
    lines = [line for line in str(err).splitlines() if line.strip()]
    return lines[-1].strip() if lines else _innermost_line(err)


def _innermost_line(err: Exception) -> str:
    """The line of code that raised it, as a bare ``assert`` does."""
    return traceback.extract_tb(err.__traceback__)[-1].line or ''


def _of_loaders(err: Exception) -> str | None:
    """Of processes that load data."""
    said = str(err)
    if isinstance(err, RuntimeError) and said.startswith('DataLoader worker'):
        return (
            f'{said.rstrip(". ")}. Perhaps memory ran out: lower num_workers '
            'or batch_size; a training goes on with --resume'
        )
    caught = re.match(rf'Caught (?!{_BUG_NAMES})\w+ in DataLoader', said)
    if caught and re.search(r'File ".*loading\.py"', said):
        return (
            f'cannot load a sample: {_text(err)}; where no file is named, '
            'num_workers=0 and persistent_workers=False of the loader do'
        )
    return None


def _of_loading(err: Exception, frames: list[FrameType]) -> str | None:
    """Of an image or an annotation that cannot be loaded."""
    if isinstance(err, _BUGS):
        return None
    for frame in frames:
        if frame.f_code.co_filename.endswith('loading.py'):
            results = frame.f_locals.get('results')
            names = [
                str(results[key])
                for key in ('img_path', 'seg_map_path')
                if isinstance(results, dict) and results.get(key)
            ]
            if names:
                names = ', '.join(names)
                return f'cannot load a sample ({names}): {_text(err)}'
    return None


def _of_the_config(err: Exception, frames: list[FrameType]) -> str | None:
    """Of an entry of the config from which nothing can be built."""
    kinds = (KeyError, ValueError, AssertionError, OSError)
    # Of a function that was called wrongly.
    called = isinstance(err, TypeError) and 'argument' in str(err)
    # What the hosts stumble over, such as text in place of a number; from
    # mmdge's own code, which looks first, it is a bug.
    ours = frames[-1].f_code.co_filename.startswith(_PACKAGE)
    types = (TypeError, AttributeError, IndexError)
    stumbled = isinstance(err, types) and not ours
    built = [f for f in frames if f.f_code.co_name == 'build_from_cfg']
    known = called or isinstance(err, kinds) or (built and stumbled)
    if not known:
        return None
    if not built:
        runner = any(
            isinstance(frame.f_locals.get('self'), Runner)
            and frame.f_code.co_name == '__init__'
            for frame in frames
        )
        return f'the config does not fit: {_text(err)}' if runner else None
    cfg, registry = (built[-1].f_locals.get(k) for k in ('cfg', 'registry'))
    cfg = cfg if isinstance(cfg, dict) else {}
    kind = cfg.get('type')
    unknown = isinstance(err, KeyError) and f'{kind} is not in' in str(err)
    if unknown:
        return f'type={kind!r} of the config is unknown{_like(kind, registry)}'
    name = getattr(kind, '__name__', kind)
    file = cfg.get('ann_file')
    if isinstance(file, str):
        file = os.path.join(cfg.get('data_root') or '', file)
        name = f'{name} from {file}, which may not be whole, or not its format'
    return f'cannot build {name}: {_text(err)}'


def _like(kind: Any, registry: Any) -> str:
    """Names that are nearly that one."""
    if not isinstance(registry, Registry):
        return ''
    while registry.parent is not None:
        registry = registry.parent
    names, queue = [], [registry]
    while queue:
        registry = queue.pop()
        queue += registry.children.values()
        scope = f'{registry.scope}.' if registry.parent is not None else ''
        names += [f'{scope}{name}' for name in registry.module_dict]
    short = str(kind).rpartition('.')[2]
    near = difflib.get_close_matches(
        short, {name.rpartition('.')[2] for name in names}, n=2
    )
    there = [n for n in names if n.rpartition('.')[2] in near]
    return f'; there is {" and ".join(sorted(there))}' if there else ''


def _of_the_data(err: Exception, frames: list[FrameType]) -> str | None:
    """Of data that the model was not made for."""
    if not isinstance(err, (IndexError, RuntimeError)):
        return None
    # Where batches are put together and losses taken.
    where = [f'{f.f_code.co_filename} {f.f_code.co_name}' for f in frames]
    for said, advised in _MISMATCHES.items():
        if re.search(said, str(err)) and any(
            re.search('loss|collate|stack_batch|data_preprocessor', place)
            for place in where
        ):
            return f'{_text(err)}: {advised}'
    return None


def _of_mmdge(err: Exception, frames: list[FrameType]) -> str | None:
    """Of what mmdge itself checks and names."""
    inside = frames[-1].f_code.co_filename.startswith(_PACKAGE)
    raised = _innermost_line(err).startswith('raise ')
    checked = isinstance(err, ValueError) and inside and raised
    return str(err) if checked else None
