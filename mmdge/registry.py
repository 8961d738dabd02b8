"""Child registries of MMEngine's roots, scope ``mmdge``.

Because they are children of the roots that mmdet, mmseg and mmpretrain hang
on too, ``type='mmdge.DGEPVT'`` resolves from any of their scopes.
"""

from __future__ import annotations

from mmengine.registry import EVALUATOR as MMENGINE_EVALUATOR
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmdge',
    locations=['mmdge.models'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmdge',
    locations=['mmdge.engine.hooks', 'mmdge.safe_training'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmdge',
    locations=['mmdge.evaluation'],
)
EVALUATOR = Registry(
    'evaluator',
    parent=MMENGINE_EVALUATOR,
    scope='mmdge',
    locations=['mmdge.evaluation'],
)
FUNCTIONS = Registry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    scope='mmdge',
    locations=['mmdge.safe_training'],
)


def find_class(kind: str | type) -> type | None:
    """The class that ``type=`` of a model's config names, or is.

    ``MODELS.get``, unlike ``build``, looks in mmdge first, whatever the
    default scope.
    """
    return MODELS.get(kind) if isinstance(kind, str) else kind
