"""The mathematics of granularity: regions, routers, the encoder block."""

from .block import DGEBlock
from .grains import (
    Packing,
    candidate_gates,
    candidates,
    content_regions,
    merge,
    pack,
    patch_grid,
    plan_packing,
    pool,
    query_counts,
    region_variance,
    unpack,
    unpool,
)
from .routers import (
    GumbelRouter,
    QuantileRouter,
    RandomRouter,
    Router,
    ShareRouter,
    UniformRouter,
    build_router,
    default_share,
)

__all__ = [
    'DGEBlock',
    'GumbelRouter',
    'Packing',
    'QuantileRouter',
    'RandomRouter',
    'Router',
    'ShareRouter',
    'UniformRouter',
    'build_router',
    'candidate_gates',
    'candidates',
    'content_regions',
    'default_share',
    'merge',
    'pack',
    'patch_grid',
    'plan_packing',
    'pool',
    'query_counts',
    'region_variance',
    'unpack',
    'unpool',
]
