"""Say in one sentence what is missing, before anything else fails.

The OpenMMLab packages are no requirements of the distribution: each exists
under two distribution names with the same import name, and pip would install
one over the other.
"""

from importlib.util import find_spec

_DISTRIBUTIONS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')


def missing_message(module: str, who: str = 'mmdge') -> str:
    """How to get ``module``, one of the OpenMMLab packages."""
    maintained, original = _DISTRIBUTIONS[module]
    return (
        f'{who} needs {module}, which is not installed: pip install '
        f'{maintained} (maintained, for current torch) or {original} '
        '(open-mmlab), but not both.'
    )


for _module in ('mmengine', 'mmcv'):
    if find_spec(_module) is None:
        raise ImportError(missing_message(_module))
