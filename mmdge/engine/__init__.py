"""What runs beside the model."""

from .hooks import CostHook, GranularityVisHook, RoutingWarmupHook

__all__ = ['CostHook', 'GranularityVisHook', 'RoutingWarmupHook']
