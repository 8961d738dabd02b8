"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmdge.utils import UserError
from mmdge.utils.mistakes import advice

# What is being written; one that was left by a killed process is overwritten.
SUFFIX = '.part'


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
        part = path.with_name(path.name + SUFFIX)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, 'wb') as file:
                file.write(obj)
                file.flush()
                # Or, after a power cut, there may be a name without content.
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as err:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise UserError(
                f'cannot write {path}: {err.strerror}; what was written '
                f'before is whole. {advice(err)}'
            ) from err


register_backend('mmdge.atomic', AtomicBackend, force=True)
