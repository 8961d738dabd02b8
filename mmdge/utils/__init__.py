"""Helpers of the tools: starting, checking, timing."""

import math
from numbers import Real
from typing import Any

from mmdge.errors import UserError

__all__ = ['UserError', 'is_number']


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number, and no truth value."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and math.isfinite(value)
