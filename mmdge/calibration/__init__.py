"""From a checkpoint and a few images to a budget that is met."""

from .adaptation import (
    HoldRatio,
    adapt,
    latest_adaptation,
    price_slope,
    settings_of,
)
from .effects import Effects, collect_effects, set_effect_router
from .errors import BlockErrors, collect_errors, routed_blocks
from .fit import calibrate, fit_power_law, set_routers
from .images import load_images
from .price import (
    find_price,
    ratio_at_price,
    runs_at_prices,
    set_price,
    warn_if_far,
)

__all__ = [
    'BlockErrors',
    'Effects',
    'calibrate',
    'collect_effects',
    'HoldRatio',
    'adapt',
    'collect_errors',
    'find_price',
    'fit_power_law',
    'latest_adaptation',
    'load_images',
    'price_slope',
    'ratio_at_price',
    'routed_blocks',
    'runs_at_prices',
    'set_effect_router',
    'set_price',
    'set_routers',
    'settings_of',
    'warn_if_far',
]
