"""Tables: tensors that follow from sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, wraps
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def table(num: int) -> Callable:
    """Let a function, which makes a tuple of tables, keep the last ``num``.

    Compiled and exported, tables are constants of the graph.
    """

    def decorated(make: Callable) -> Callable:
        cached = lru_cache(maxsize=num)(make)

        @torch.compiler.assume_constant_result
        def constant(*args: Any) -> Any:
            real = nullcontext()
            if torch.compiler.is_exporting():  # no tensor is a real one there
                real = _disable_current_modes()
            # Those made in inference mode would be of no use in training.
            with real, torch.inference_mode(False):
                return cached(*args)

        @wraps(make)
        def kept(*args: Any) -> Any:
            if torch.compiler.is_dynamo_compiling():
                args = map(_known, args)
            return constant(*args)

        return kept

    return decorated


def _known(value: Any) -> Any:
    """A size is known, though the compiler wants a graph for any."""
    if isinstance(value, tuple):
        return tuple([_known(part) for part in value])
    return len(range(value)) if isinstance(value, int) else value
