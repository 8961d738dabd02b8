"""Metrics."""

from .backbone_flops import BackboneFLOPs
from .edge_iou import EdgeIoU
from .ratio_by_content import RatioByContent
from .whole_set import WholeSetEvaluator, with_flops, with_metrics

__all__ = [
    'BackboneFLOPs',
    'EdgeIoU',
    'RatioByContent',
    'WholeSetEvaluator',
    'with_flops',
    'with_metrics',
]
