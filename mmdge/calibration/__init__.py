"""From a checkpoint and a few images to a budget that is met."""

from .errors import (
    BlockErrors,
    check_routed,
    collect_errors,
    routed_blocks,
)
from .fit import fit_power_law, set_routers
from .images import load_images
from .operating_points import set_routing
from .price import (
    find_price,
    fold_price,
    ratio_at_price,
    runs_at_prices,
    set_price,
    warn_if_far,
)

__all__ = [
    'BlockErrors',
    'check_routed',
    'collect_errors',
    'find_price',
    'fit_power_law',
    'fold_price',
    'load_images',
    'ratio_at_price',
    'routed_blocks',
    'runs_at_prices',
    'set_price',
    'set_routers',
    'set_routing',
    'warn_if_far',
]
