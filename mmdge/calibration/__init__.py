"""From a checkpoint and a few images to a budget that is met."""

from .adaptation import (
    HoldRatio,
    adapt,
    latest_adaptation,
    price_slope,
    settings_of,
)
from .effects import (
    Effects,
    collect_effects,
    dense_outputs,
    distance,
    set_effect_router,
)
from .errors import (
    BlockErrors,
    check_routed,
    collect_errors,
)
from .fast_paths import fit_fast_paths
from .fit import calibrate, fit_power_law, fit_routers, set_routers
from .fixed_shares import fix_shapes
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
    'Effects',
    'HoldRatio',
    'adapt',
    'calibrate',
    'check_routed',
    'collect_effects',
    'collect_errors',
    'dense_outputs',
    'distance',
    'find_price',
    'fit_fast_paths',
    'fit_power_law',
    'fit_routers',
    'fix_shapes',
    'fold_price',
    'latest_adaptation',
    'load_images',
    'price_slope',
    'ratio_at_price',
    'runs_at_prices',
    'set_effect_router',
    'set_price',
    'set_routers',
    'set_routing',
    'settings_of',
    'warn_if_far',
]
