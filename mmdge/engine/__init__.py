"""What runs beside the model."""

from .hooks import (
    CostHook,
    GranularityVisHook,
    RandomPriceHook,
    RoutingWarmupHook,
)

__all__ = [
    'CostHook',
    'GranularityVisHook',
    'RandomPriceHook',
    'RoutingWarmupHook',
]
