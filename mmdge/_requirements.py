"""Say in one sentence what is missing, before anything else fails.

The OpenMMLab packages are no requirements of the distribution: each exists
under two distribution names with the same import name, and pip would install
one over the other.
"""

from importlib.util import find_spec

_DISTRIBUTIONS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
}


def missing_message(module: str) -> str:
    """How to get ``module``, one of the packages that mmdge stands on."""
    maintained, original = _DISTRIBUTIONS[module]
    return (
        f'mmdge needs {module}, which is not installed: pip install '
        f'{maintained} (maintained, for current torch) or {original} '
        '(open-mmlab), but not both.'
    )


for _module in _DISTRIBUTIONS:
    if find_spec(_module) is None:
        raise ImportError(missing_message(_module))
