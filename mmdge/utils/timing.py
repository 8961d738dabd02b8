"""Timing in turns, so that ratios hold on a busy machine; seconds, bytes."""

import gc
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import profile

# What CUDA's runtime and driver are asked for; a graph is one launch. Here
# nothing but the timing waits for the whole device.
_LAUNCH = re.compile(r'(cuda|cu)(LaunchKernel|LaunchCooperative|GraphLaunch)')
_WAIT = re.compile(r'(cuda|cu)(StreamSynchronize|EventSynchronize|Memcpy$)')


class Footprint(NamedTuple):
    """What one run needs.

    Attributes:
        memory (int): Its peak above what was held, in bytes.
        kernels (list[str]): Of its attention.
        launches (int): Of kernels on a GPU; a CUDA graph is one.
        waits (int): How often the CPU waited for the GPU.
    """

    memory: int
    kernels: list[str]
    launches: int
    waits: int


class Quartiles(NamedTuple):
    """Of at least one time."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, times: Sequence[float]) -> 'Quartiles':
        """Quartiles of these times, interpolated."""
        return cls(*np.quantile(times, (0.25, 0.5, 0.75)).tolist())


def interleave(
    runs: Mapping[Any, Callable[[], Any]],
    rounds: Iterable[int],
    device: torch.device,
    after: Callable[[Any], None] = lambda name: None,
) -> dict[Any, list[float]]:
    """Run everything once per round, in an order that changes.

    Each round begins with the next one; when all have begun, the next rounds
    go backwards, so none always has the same place or the same one before it.

    Args:
        runs (Mapping[Any, Callable]): What to time, by name.
        rounds (Iterable[int]): From 0 on; what it does itself isn't timed.
        device (torch.device): Waited for.
        after (Callable): Called with the name after each run, not timed.

    Returns:
        dict[Any, list[float]]: Seconds; none of what ran out of memory.
    """
    times, left = {name: [] for name in runs}, list(runs)
    try:
        for number in rounds:
            turns, first = divmod(number, max(1, len(left)))
            order = left[first:] + left[:first]
            gc.collect()
            gc.disable()
            for name in order[:: -1 if turns % 2 else 1]:
                try:
                    start = _now(device)
                    runs[name]()
                    times[name].append(_now(device) - start)
                    after(name)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    left.remove(name)
                    times[name] = []
    finally:
        gc.enable()
    return times


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory didn't suffice; the CPU's allocator has no class."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or 'you tried to allocate' in str(error)


def footprint(run: Callable[[], Any], device: torch.device) -> Footprint:
    """Run once under the profiler; on a CPU only PyTorch's memory is seen."""
    on_cpu, held = device.type == 'cpu', 0
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    with profile(profile_memory=on_cpu) as seen:
        run()
        _now(device)
    events = seen.profiler.kineto_results.events()
    if on_cpu:  # the highest running sum of what was allocated and freed
        changes = [e for e in events if e.name() == '[memory]']
        changes.sort(key=lambda event: event.start_ns())
        peak = max(accumulate((e.nbytes() for e in changes), initial=0))
    else:
        peak = torch.cuda.max_memory_allocated(device)
    forward = r'\w+::(_scaled_dot_product_(?!\w*backward)\w+|_?varlen_attn)'
    names = (re.fullmatch(forward, e.key) for e in seen.key_averages())
    launches, waits = (
        sum(bool(asked.match(event.name())) for event in events)
        for asked in (_LAUNCH, _WAIT)
    )
    kernels = sorted({name[1] for name in names if name})
    return Footprint(peak - held, kernels, launches, waits)


def in_graph(run: Callable[[Tensor], Any], x: Tensor) -> Callable:
    """Capture a run in a CUDA graph.

    Args:
        run (Callable[[Tensor], Any]): Without gradients, of constant shapes.
        x (Tensor): Its input, on the GPU; those of later runs are copied.

    Returns:
        Callable: Runs the graph, and returns what was captured: always the
        same tensors, with new values.

    Raises:
        RuntimeError: If it asks for something that a graph cannot hold, as
            waiting for the GPU is.
    """
    held, side = x.clone(), torch.cuda.Stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):  # libraries choose their kernels
        for _ in range(3):
            run(held)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = run(held)

    def replay(images: Tensor) -> Any:
        held.copy_(images)
        graph.replay()
        return outs

    return replay


def device_name(device: torch.device) -> str:
    """Name of a GPU, or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    text = info.read_text() if info.is_file() else ''
    found = re.search(r'model name\s*: (.+)', text)
    return found[1] if found else platform.machine()
