"""PyTorch's counter of FLOPs, without its trap."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Count what runs inside; the counter counts a multiply-add as two.

    Attention runs as two plain matrix products, because fused kernels on a
    CPU are not counted (pytorch/pytorch issue 195460).

    Example:
        >>> with flop_counter() as counter:
        ...     model(x)
        >>> multiply_adds = counter.get_total_flops() / 2
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter
