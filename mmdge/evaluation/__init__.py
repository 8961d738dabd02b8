"""Metrics."""

from .backbone_flops import BackboneFLOPs
from .ratio_by_content import RatioByContent
from .whole_set import WholeSetEvaluator, with_flops, with_metrics

__all__ = [
    'BackboneFLOPs',
    'RatioByContent',
    'WholeSetEvaluator',
    'with_flops',
    'with_metrics',
]
