"""Hooks: they know a backbone's Cost and its routers' schedule, no more."""

from .cost_hook import (
    CostHook,
    find_dynamic_backbone,
    find_dynamic_backbones,
)
from .distill_hook import DistillHook, relative_error, tensors
from .granularity_vis_hook import GranularityVisHook
from .random_price_hook import RandomPriceHook
from .routing_warmup_hook import RoutingWarmupHook

__all__ = [
    'CostHook',
    'DistillHook',
    'GranularityVisHook',
    'RandomPriceHook',
    'RoutingWarmupHook',
    'find_dynamic_backbone',
    'find_dynamic_backbones',
    'relative_error',
    'tensors',
]
