"""PyTorch's counter of FLOPs, without its trap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


def multiply_adds(
    run: Callable[[], Any], *parts: Sequence[str]
) -> list[float]:
    """Count what a run computes: in all, and in some modules.

    Args:
        run (Callable): Without gradients.
        *parts (Sequence[str]): Names of modules, each set added up, from the
            class of the outermost on, e.g. ``['RetinaNet.backbone']``.
    """
    with flop_counter() as counter:
        run()
    seen = counter.get_flop_counts()
    return [
        sum(sum(seen.get(name, {}).values()) for name in names) / 2
        for names in (['Global'], *parts)
    ]
