"""The checkpoint from which an interrupted training goes on."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from string import Formatter

from mmengine.config import Config
from mmengine.logging import print_log

from mmdge.errors import UserError

from .reading import open_checkpoint


def find_latest_checkpoint(cfg: Config) -> str | None:
    """Find the checkpoint from which an interrupted training goes on.

    That is the one that ``last_checkpoint`` names, unless a later one was
    saved and the process killed before the name was written. One that cannot
    be read, as if the process was killed while writing it, is passed over.

    Args:
        cfg: The config of the training: its ``work_dir``, and where its
            checkpoint hook writes.

    Returns:
        The path; None if there is none.

    Raises:
        UserError: If a training wrote here, and nothing of it can be read.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folder = work_dir = Path(cfg.work_dir)
    mark = work_dir / 'last_checkpoint'
    name = mark.read_text().strip() if mark.is_file() else ''
    if '://' in name:
        return name  # of a store that we cannot look into
    if hook.get('out_dir') and '://' not in str(hook['out_dir']):
        folder = Path(hook['out_dir']) / work_dir.absolute().name
    # MMEngine's own names, unless the config has others.
    template = hook.get('filename_tmpl') or '{epoch|iter}_{}.pth'
    there = _at_steps(folder, template)
    # Where the folder was moved or copied, the name is that of before.
    named = [p for p in (folder / Path(name).name, Path(name)) if p.is_file()]
    named = named[:1] if name else []
    step = there.get(named[0]) if named else None
    later = [
        path
        for path in there
        if step is not None
        and there[path] > step
        and _time(path) > _time(mark)
    ]
    candidates = list(dict.fromkeys([*later, *named, *there]))
    for path in candidates:
        try:
            _read_to_its_end(path)
            return str(path)
        except Exception as err:  # a flipped bit may raise anything
            print_log(
                f'{path} is broken, and passed over: {err}',
                level=logging.WARNING,
            )
    if candidates or mark.is_file():
        raise UserError(
            f'{folder} has no checkpoint that can be read, but a training '
            'wrote there; remove last_checkpoint and *.pth to start afresh, '
            'or name another one: --resume CHECKPOINT'
        )
    return None


def _at_steps(folder: Path, template: str) -> dict[Path, int]:
    """Checkpoints and their epoch or iteration, the newest first."""
    pattern = ''
    for text, field, *_ in Formatter().parse(template):
        pattern += re.escape(text)
        if field is not None:
            either = field == 'epoch|iter'
            pattern += '(?:epoch|iter)' if either else r'(\d+)'
    steps = {
        # All of one name: that of the last.
        path: int(found[1]) if found.groups() else 0
        for path in folder.glob('*')
        if (found := re.fullmatch(pattern, path.name)) and path.is_file()
    }
    return dict(sorted(steps.items(), key=lambda item: -_time(item[0])))


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _read_to_its_end(path: Path) -> None:
    """Raise if anything of a checkpoint is not as it was written."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
        # A flipped bit may make a tensor a folder, which has no checksum.
        folders = [i.filename for i in archive.infolist() if i.is_dir()]
    if broken or folders:
        name = broken or folders[0]
        raise ValueError(f'{name} inside has another checksum')
    open_checkpoint(path)
