"""Is an argument the number that it should be?"""

import math
from numbers import Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number, and no truth value."""
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
