"""Stand-in for mmcv's compiled ops, built on torch and torchvision.

A plain ``pip install onedl-mmcv`` builds no compiled ops: there is no
``mmcv._ext``, so ``import mmcv.ops`` fails, and ``mmdet.models``, which needs
``mmcv.ops``, fails with it. :func:`install` registers a substitute for
``mmcv._ext`` with the ops that common detectors need:

- ``nms`` and ``roi_align`` (average pooling), from torchvision's own kernels;
- ``sigmoid_focal_loss``, which mmdet's ``FocalLoss`` calls on CUDA, in torch.

Every other op can be imported but raises ``NotImplementedError`` when called.
Nothing changes where mmcv has its own compiled ops.

Unlike compiled mmcv, half precision is computed in float32 and rounded once,
a box of negative size is no error of ``roi_align``, and its backward pass on
CUDA says that it is nondeterministic.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
import torchvision
from mmengine.logging import print_log
from torch import Tensor

__all__ = ['install']

_EXT_NAME = 'mmcv._ext'
_REDUCED_DTYPES = (torch.float16, torch.bfloat16)
# mmcv clamps probabilities to C's FLT_MIN before it takes their logarithm.
_FLT_MIN = torch.finfo(torch.float32).tiny

# In their place mmdet binds what only raises where mmcv has no ops.
_MMDET_STUBS = ('nms', 'batched_nms', 'roi_align', '_sigmoid_focal_loss')


def install() -> bool:
    """Register the substitute for ``mmcv._ext`` if mmcv has no compiled ops.

    Modules of mmdet that were imported earlier have bound stubs in place of
    ``nms``, ``batched_nms``, ``roi_align`` and ``sigmoid_focal_loss``; those
    are pointed at the ops that work now.

    Returns:
        bool: True if this call registered the substitute; False if mmcv has
        compiled ops, or if the substitute is registered already.

    Raises:
        ModuleNotFoundError: If mmcv is not installed.
    """
    # The look-up of a module finds an entry in sys.modules first, and a file
    # of a compiled mmcv, without loading it, second.
    if _EXT_NAME in sys.modules or importlib.util.find_spec(_EXT_NAME):
        return False

    ext = _FallbackExt()
    sys.modules[_EXT_NAME] = ext
    sys.modules['mmcv']._ext = ext
    _rebind_mmdet_stubs()
    print_log(
        'mmcv has no compiled ops: nms, roi_align and sigmoid_focal_loss run '
        'on torchvision and torch, other mmcv ops raise when called.',
        logger='current',
    )
    return True


# The functions below take what mmcv's own wrappers hand to its compiled ops.


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes (Tensor): ``(N, 4)``, xyxy in pixels, ``x2 - x1 + offset`` wide.
        scores (Tensor): ``(N,)``.
        iou_threshold (float): A box goes whose IoU with a kept one of higher
            score is strictly greater.
        offset (int): 0 or 1, in pixels.

    Returns:
        Tensor: Indices of kept boxes by descending score, int64, ``(K,)``.
    """
    dtype = _compute_dtype(boxes)
    boxes = boxes.to(dtype)
    if offset:
        # Widths, heights and overlaps all grow by the offset, which is what
        # moving the lower right corners does to the plain IoU.
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares with a float32 threshold. It matters for an IoU right at
    # the threshold: 0.6 in float32 is greater than 0.6 in float64.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(boxes, scores.to(dtype), threshold)


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the RoIAlign of ``input`` (B, C, H, W) to ``output``.

    ``rois`` (K, 5) are batch index and box, xyxy in pixels of the image;
    ``output`` is (K, C, aligned_height, aligned_width). ``argmax_*`` serve
    max pooling, ``pool_mode=0``, which raises NotImplementedError.
    """
    _check_pool_mode(pool_mode)
    dtype = _compute_dtype(input)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``."""
    _check_pool_mode(pool_mode)
    dtype = _compute_dtype(grad_output)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.add_(gradient)


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the focal loss of each logit of ``input`` (N, C) to ``output``.

    ``target`` (N,) are classes, C the background; ``weight`` (C,) is a factor
    by the class of the row, which a background then may not be, or empty.
    """
    _, right, wrong, scale = _focal_terms(input, target, weight, alpha)
    loss = -scale * wrong.pow(gamma) * right.clamp(min=_FLT_MIN).log()
    output.copy_(loss)


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write each loss's derivative by its logit to ``grad_input`` (N, C)."""
    positive, right, wrong, scale = _focal_terms(input, target, weight, alpha)
    log_right = right.clamp(min=_FLT_MIN).log()
    slope = wrong.pow(gamma) * (wrong - gamma * right * log_right)
    # A larger logit lowers the loss of a positive and raises the others.
    grad_input.copy_(scale * torch.where(positive, -slope, slope))


def _focal_terms(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the focal loss and its derivative share, each (N, C).

    Whether an entry is its row's class, the probability of the right answer,
    that of the wrong one, and the factor from alpha and ``weight``.
    """
    probability = input.to(_compute_dtype(input)).sigmoid()
    classes = torch.arange(input.size(1), device=target.device)
    positive = target[:, None] == classes
    right = torch.where(positive, probability, 1 - probability)
    wrong = torch.where(positive, 1 - probability, probability)
    scale = torch.where(positive, alpha, 1 - alpha).to(probability)
    if weight.numel():
        scale = scale * weight.index_select(0, target).to(scale)[:, None]
    return positive, right, wrong, scale


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """What to compute in: torchvision has no CPU kernels of reduced ones."""
    return torch.float32 if tensor.dtype in _REDUCED_DTYPES else tensor.dtype


def _check_pool_mode(pool_mode: int) -> None:
    """Raise NotImplementedError for max pooling, which torchvision lacks."""
    if pool_mode != 1:
        _missing_op("roi_align with pool_mode='max'")()


def _missing_op(name: str) -> Callable:
    """Return a function that raises NotImplementedError naming the op."""

    def raise_missing(*args, **kwargs):
        raise NotImplementedError(
            f'The mmcv op {name} needs mmcv with compiled ops: install a '
            'wheel built with ops, or build one by `MMCV_WITH_OPS=1 pip '
            'install --no-build-isolation --no-binary onedl-mmcv onedl-mmcv`.'
        )

    return raise_missing


class _FallbackExt(ModuleType):
    """Substitute for the compiled module ``mmcv._ext``."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)
    sigmoid_focal_loss_forward = staticmethod(sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(sigmoid_focal_loss_backward)
    # ``mmcv.utils.collect_env`` calls these.
    get_compiler_version = staticmethod(lambda: 'n/a')
    get_compiling_cuda_version = staticmethod(lambda: 'n/a')

    def __init__(self) -> None:
        super().__init__(_EXT_NAME, __doc__)
        # Without a loader, since there is no file. It also keeps mmcv's
        # check_ops_exist() False, which asks for the loader.
        self.__spec__ = ModuleSpec(_EXT_NAME, loader=None)
        self.__package__ = 'mmcv'

    def __getattr__(self, name: str) -> Callable:
        # mmcv asks for each op when imported, so each has to be there. Names
        # with an underscore are the interpreter's questions, never ops.
        if name.startswith('_'):
            raise AttributeError(f'{_EXT_NAME} has no attribute {name}')
        return _missing_op(name)


def _rebind_mmdet_stubs() -> None:
    """Replace the stubs in modules of mmdet that were imported too early.

    ``from mmdet.structures import ...`` before ``import mmdge`` (where import
    sorters put it) is enough to break the mask targets of Mask R-CNN.
    """
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith('mmdet.'):
            continue
        for stub_name in _MMDET_STUBS:
            bound = vars(module).get(stub_name)
            # A stub is defined in the module, an op is imported from mmcv.
            if getattr(bound, '__module__', None) == module_name:
                ops = importlib.import_module('mmcv.ops')
                setattr(module, stub_name, getattr(ops, stub_name.strip('_')))
