"""What the converters of data sets share: all of a folder, or none of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from mmengine import ProgressBar

from mmdge.errors import UserError


@contextmanager
def whole_folder(
    root: str | os.PathLike, contents: Collection[str], overwrite: bool = False
) -> Iterator[Path]:
    """Fill a folder that gets its name only when it is finished.

    Until then it is called ``<root>.part``. What an interrupted run left
    there is thrown away. Two processes must not fill the same folder at the
    same time.

    Args:
        root: The folder to make; its parents are made if they are missing.
        contents: The names of what will be in it.
        overwrite: Take the place of a folder that is there, if it holds
            nothing else than ``contents``. Default: False.

    Yields:
        The folder to write to.

    Raises:
        UserError: If the folder is there and may not be written over.
    """
    root = Path(root).resolve()  # what a link leads to, not the link
    if root.exists() and not root.is_dir():
        raise UserError(f'{root} is a file; name a folder with --root')
    found = {path.name for path in root.iterdir()} if root.exists() else set()
    if found and not overwrite:
        raise UserError(
            f'{root} is there already; make it again with --overwrite, or '
            'name another folder with --root'
        )
    if found.difference(contents):
        raise UserError(
            f'{root} also holds {min(found.difference(contents))}, which is '
            'not of the data set and would be lost; name another folder with '
            '--root'
        )
    part = root.with_name(f'{root.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if root.exists():
            shutil.rmtree(root)
        part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def progress(count: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar.

    Args:
        count: Number of steps, 1 or more.

    Yields:
        What to call after each step.
    """
    bar = ProgressBar(count, file=sys.stdout)
    try:
        yield bar.update
    finally:
        print()  # the bar leaves its line open


def read_image(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Read one image of a data set.

    Args:
        path: The file.
        flag: One of OpenCV's ``IMREAD_*``. Default: colour, as BGR.

    Returns:
        The image ``(H, W, 3)``, or ``(H, W)`` if it has one channel and the
        flag keeps it so.

    Raises:
        UserError: If the file is missing or is not an image.
    """
    image = cv2.imread(str(path), flag) if path.is_file() else None
    if image is None:
        state = 'is not an image' if path.is_file() else 'is missing'
        raise UserError(f'{path} {state}; get the data set again')
    return image
