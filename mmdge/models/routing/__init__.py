"""Decisions: routers, the rows that they choose, granularity."""

from .averaged_gate import AveragedGate
from .effect_router import EffectRouter
from .error_routers import ErrorRouter, OracleRouter, ShuffledRouter
from .granularity import Grains, WithGate, region_variance
from .router import Decision, GumbelRouter, Router, build_router
from .share_routers import (
    QuantileRouter,
    RandomRouter,
    ShareRouter,
    UniformRouter,
    default_share,
)
from .two_pass_routers import AttentionRouter, ConfidenceRouter

__all__ = [
    'AttentionRouter',
    'ConfidenceRouter',
    'AveragedGate',
    'Decision',
    'EffectRouter',
    'ErrorRouter',
    'Grains',
    'GumbelRouter',
    'OracleRouter',
    'QuantileRouter',
    'RandomRouter',
    'Router',
    'ShareRouter',
    'ShuffledRouter',
    'UniformRouter',
    'WithGate',
    'build_router',
    'default_share',
    'region_variance',
]
