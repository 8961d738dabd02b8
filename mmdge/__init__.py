"""mmdge: dynamic vision transformers for mmdet, mmseg and mmpretrain.

Importing it registers everything under the scope ``mmdge``; configs do so
with ``custom_imports = dict(imports=['mmdge'], allow_failed_imports=False)``.
"""

# _requirements comes first: it says in one sentence what is missing.
from . import _requirements, ops_fallback  # noqa: F401
from .engine import (
    CostHook,
    DistillHook,
    GranularityVisHook,
    RandomPriceHook,
    RoutingWarmupHook,
)
from .evaluation import BackboneFLOPs, EdgeIoU, RatioByContent
from .models import (
    DGEDPVT,
    DGEPVT,
    CFLVViT,
    CFViT,
    CoarseToFineHead,
    Cost,
    DGEConvNeXt,
    DGEDeiT,
    DGEPVTv2,
    DGESwin,
    DGEViT,
    DynamicConvNeXt,
    DynamicLVViT,
    DynamicSwin,
    DynamicViT,
    MergingViT,
    MixedPatchViT,
    SimpleFPN,
    TokenRoutingPVT,
    share_for_budget,
)
from .safe_training import SafeCheckpointHook, seed_worker
from .version import __version__

ops_fallback.install()

__all__ = [
    'DGEDPVT',
    'CFLVViT',
    'CFViT',
    'DGEPVT',
    'BackboneFLOPs',
    'CoarseToFineHead',
    'Cost',
    'CostHook',
    'DistillHook',
    'DGEConvNeXt',
    'DGEDeiT',
    'DGESwin',
    'DGEPVTv2',
    'DGEViT',
    'DynamicConvNeXt',
    'DynamicSwin',
    'DynamicLVViT',
    'DynamicViT',
    'MergingViT',
    'MixedPatchViT',
    'EdgeIoU',
    'GranularityVisHook',
    'RandomPriceHook',
    'RatioByContent',
    'RoutingWarmupHook',
    'SafeCheckpointHook',
    'SimpleFPN',
    'TokenRoutingPVT',
    '__version__',
    'seed_worker',
    'share_for_budget',
]
