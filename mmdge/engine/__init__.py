"""What runs beside the model."""

from .hooks import (
    CostHook,
    GranularityVisHook,
    RandomPriceHook,
    RoutingWarmupHook,
    SafeCheckpointHook,
)

__all__ = [
    'CostHook',
    'GranularityVisHook',
    'RandomPriceHook',
    'RoutingWarmupHook',
    'SafeCheckpointHook',
]
