"""What runs beside the model."""

from .hooks import (
    CostHook,
    DistillHook,
    GranularityVisHook,
    RandomPriceHook,
    RoutingWarmupHook,
)

__all__ = [
    'CostHook',
    'DistillHook',
    'GranularityVisHook',
    'RandomPriceHook',
    'RoutingWarmupHook',
]
