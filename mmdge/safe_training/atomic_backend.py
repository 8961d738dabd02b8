"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

from mmengine.fileio import LocalBackend, register_backend

from mmdge.errors import UserError

# What is being written, or was when the process was killed.
SUFFIX = '.part'
LOCK = '.training'
# Kept open, each by the folder: a lock lasts as long as the process.
_locks: dict[str, TextIO] = {}


class AtomicBackend(LocalBackend):
    """Local files, each written beside its place and moved there when whole.

    MMEngine's own backend writes a checkpoint in place, so that a process
    killed meanwhile, or a full disk, leaves the first part of one. To use
    it for other files: ``backend_args=dict(backend='mmdge.atomic')``.
    """

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file.

        Args:
            obj (bytes): All of it.
            filepath (str | PathLike): Replaced if there is one.

        Raises:
            UserError: If it cannot be, as on a full disk; what was there is
                there still.
        """
        path = Path(filepath)
        # A name of its own, in case another process writes the same file.
        part = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, 'wb') as file:
                file.write(obj)
                file.flush()
                # Or, after a power cut, there may be a name without content.
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
        except OSError as err:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise UserError(
                f'cannot write {path}: {err.strerror}; what was written '
                'before is whole. Make room, or make it writable, and start '
                'again; a training goes on with --resume'
            ) from err


def take_folder(folder: str | os.PathLike) -> None:
    """Keep other trainings from writing to a folder until this process ends.

    What was left half-written there, by one that was killed, is removed.

    Args:
        folder (str | PathLike): Made if it isn't there.

    Raises:
        UserError: If another process has taken it.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None or str(folder) in _locks:
        return
    file = open(folder / LOCK, 'a+')  # noqa: SIM115  open till the end
    try:
        # A record lock: this process may take it again, and it ends with it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        file.seek(0)
        owner = file.read().strip() or 'unknown'
        file.close()
        if err.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f'another training, process {owner}, writes to {folder}: '
                'wait for it, end it, or choose another --work-dir'
            ) from err
        return  # a file system without locks
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _locks[str(folder)] = file
    for part in folder.glob(f'*{SUFFIX}'):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have a new name outlast a power cut, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


register_backend('mmdge.atomic', AtomicBackend, force=True)
