"""The mathematics of granularity: regions, routers, the encoder block."""

from .block import DGEBlock
from .error_routers import ErrorRouter, OracleRouter, ShuffledRouter
from .grains import (
    Packing,
    WithGate,
    candidate_gates,
    candidates,
    coarser,
    content_regions,
    gate_gradient,
    own_tokens,
    pack,
    patch_grid,
    plan_packing,
    pool,
    query_counts,
    region_variance,
    unpack,
    unpool,
    update_errors,
)
from .routers import FinestRouter, GumbelRouter, Router, build_router
from .share_routers import (
    QuantileRouter,
    RandomRouter,
    ShareRouter,
    UniformRouter,
    default_share,
)

__all__ = [
    'DGEBlock',
    'ErrorRouter',
    'FinestRouter',
    'GumbelRouter',
    'OracleRouter',
    'Packing',
    'QuantileRouter',
    'RandomRouter',
    'Router',
    'ShareRouter',
    'ShuffledRouter',
    'UniformRouter',
    'WithGate',
    'build_router',
    'candidate_gates',
    'candidates',
    'coarser',
    'content_regions',
    'default_share',
    'gate_gradient',
    'own_tokens',
    'pack',
    'patch_grid',
    'plan_packing',
    'pool',
    'query_counts',
    'region_variance',
    'unpack',
    'unpool',
    'update_errors',
]
