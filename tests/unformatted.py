"""Configs whose text is left as it is.

MMEngine formats it whenever it logs, dumps or saves a config, which takes
half of the time of a short run.
"""

from mmengine.config import Config


def leave_unformatted() -> None:
    """Do so from here on, in this process and what is forked from it."""
    Config._format_python_code = property(lambda _: False, lambda *_: None)
