"""Time several ways to do the same, side by side in one process.

A machine is never quite idle, its clock varies, and caches remember. So what
is to be compared is run in turns, and the ratios of the medians are what
counts. Times are in seconds, memory in bytes.
"""

from __future__ import annotations

import cProfile
import gc
import platform
import pstats
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from statistics import quantiles
from types import CodeType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]


class Footprint(NamedTuple):
    """What a run needs besides time.

    Attributes:
        memory (int): Bytes at the peak, above what was held before.
        kernels (list[str]): The attention kernels that ran.
    """

    memory: int
    kernels: list[str]


class Quartiles(NamedTuple):
    """Of a list of times, in seconds."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, times: Collection[float]) -> Quartiles:
        """Quartiles of at least one time."""
        if len(times) == 1:
            return cls(*times, *times, *times)
        return cls(*quantiles(times, n=4, method='inclusive'))


class Stopwatch:
    """Time a module takes inside of something larger.

    Args:
        module (nn.Module): Timed whenever it is called.
        device (torch.device): Where it runs. A GPU is asked for the times
            when they are taken, so that the module waits for nothing.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self._marks = []
        self._hooks = [
            module.register_forward_pre_hook(self._mark),
            module.register_forward_hook(self._mark),
        ]

    def take(self) -> float:
        """Seconds since this was last asked for."""
        marks, self._marks = self._marks, []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if self.device.type != 'cuda':
            return sum(end - start for start, end in pairs)
        synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3

    def remove(self) -> None:
        """Leave the module as it was."""
        for hook in self._hooks:
            hook.remove()

    def _mark(self, *_: Any) -> None:
        if self.device.type == 'cuda':
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())


def synchronize(device: torch.device) -> None:
    """Wait for what was asked of a device; a CPU is never behind."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory doesn't suffice, on any device."""
    # The allocator of the CPU has no class of its own.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and re.search(r"can't allocate memory|not enough memory", str(error))
        is not None
    )


def interleave(
    runs: Mapping[str, Run],
    rounds: Iterable[int],
    device: torch.device,
    after: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Run everything once per round, in an order that changes.

    Each round begins with the next one; when all have begun, the next rounds
    go backwards. So none always has the same place or the same one before
    it. Nothing is warmed up here.

    Args:
        runs (Mapping[str, Callable]): What to time, by name.
        rounds (Iterable[int]): Numbers from 0 on; what the iterator does
            between two of them isn't timed.
        device (torch.device): Where they run; waited for.
        after (Callable): Called with the name after each run, not timed.

    Returns:
        dict[str, list[float]]: Seconds of each round; an empty list for what
        ran out of memory.
    """
    times = {name: [] for name in runs}
    left = list(runs)
    collects = gc.isenabled()
    try:
        for number in rounds:
            first = number % max(1, len(left))
            order = left[first:] + left[:first]
            gc.collect()
            gc.disable()
            backwards = number // max(1, len(left)) % 2
            for name in order[:: -1 if backwards else 1]:
                try:
                    times[name].append(_time(runs[name], device))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    left.remove(name)
                    times[name] = []
                else:
                    after(name)
    finally:
        if collects:
            gc.enable()
    return times


def _time(run: Run, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def warm_up(
    runs: Mapping[str, Run],
    device: torch.device,
    after: Callable[[str], None] = lambda name: None,
) -> dict[str, Footprint]:
    """Run everything a few times, untimed, and look at what it needs.

    Args:
        runs (Mapping[str, Callable]): By name.
        device (torch.device): Where they run.
        after (Callable): Called with the name after each run.

    Returns:
        dict[str, Footprint]: Without what ran out of memory.
    """
    found = {}
    for name, run in runs.items():
        try:
            for _ in range(2):  # what is lazy, and the choice of algorithms
                run()
                after(name)
            found[name] = footprint(run, device)
            after(name)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
    return found


def realised_share(time_ratio: float, flops_ratio: float) -> float | None:
    """How much of the saved FLOPs was saved in time: 1 is all of it.

    Args:
        time_ratio (float): Time over that of the dense model.
        flops_ratio (float): FLOPs over those of the dense model.

    Returns:
        float | None: None if no FLOPs were saved.
    """
    if flops_ratio == 1:
        return None
    return (1 - time_ratio) / (1 - flops_ratio)


def matrix_product(
    device: torch.device, dtype: torch.dtype
) -> tuple[Run, int]:
    """What a device does best, a large linear layer, to measure its peak by.

    Returns:
        tuple[Callable, int]: A run, of two square matrices with sides of 2048
        on a CPU and of 8192 elsewhere, and its multiply-adds.
    """
    side = 2048 if device.type == 'cpu' else 8192
    x = torch.randn(side, side, device=device, dtype=dtype)
    return (lambda: F.linear(x, x)), side**3


def footprint(run: Run, device: torch.device) -> Footprint:
    """Run once, and look at memory and at the kernels of attention.

    On a CPU the memory is the highest running sum of what PyTorch's allocator
    gave and took back; what libraries take by themselves isn't seen.
    """
    on_cuda = device.type == 'cuda'
    held = 0
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=not on_cuda
    ) as seen:
        run()
        synchronize(device)
    kernels = {
        name.group(1)
        for event in seen.key_averages()
        if (name := _ATTENTION.fullmatch(event.key))
    }
    if on_cuda:
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = _highest_sum(seen)
    return Footprint(peak - held, sorted(kernels))


# Forward only, by the name of the implementation that was chosen.
_ATTENTION = re.compile(
    r'\w+::(_scaled_dot_product_(?!\w*backward)\w+|_?varlen_attn)'
)


def _highest_sum(seen: profile) -> int:
    """Peak of the bytes allocated on the CPU since a profile began."""
    changes = [
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == '[memory]' and event.device_type() == DeviceType.CPU
    ]
    peak = now = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak


def time_in_files(
    run: Run,
    whole: CodeType,
    files: Collection[str],
    functions: Collection[CodeType] = (),
) -> dict[str, float]:
    """Where the time of a Python function goes, by functions it reaches.

    Args:
        run (Callable): Calls the function. Profiling slows it down, the more
            so the smaller the parts.
        whole (CodeType): The function's ``__code__``.
        files (Collection[str]): Source files whose functions are looked at.
        functions (Collection[CodeType]): Others that are, by ``__code__``.

    Returns:
        dict[str, float]: Share of the function's time, by function of these
        files that others call, and by the others, what it calls included;
        largest first.
    """
    profiler = cProfile.Profile()
    profiler.runcall(run)
    entries = pstats.Stats(profiler).stats
    total = entries[_key(whole)]
    shares = {}
    keys = {_key(code) for code in functions}
    for (file, line, name), (*_, callers) in entries.items():
        if file in files or (file, line, name) in keys:
            entered = sum(
                cumulative
                for (caller, *_), (*_, cumulative) in callers.items()
                if caller not in files and caller != '~'  # a built-in
            )
            key = f'{Path(file).stem}.{name}'
            shares[key] = shares.get(key, 0) + entered / total[3]
    return {
        name: share
        for name, share in sorted(shares.items(), key=lambda kv: -kv[1])
        if share
    }


def _key(code: CodeType) -> tuple[str, int, str]:
    """How the profiler names a function."""
    return code.co_filename, code.co_firstlineno, code.co_name


def top_kernels(run: Run, number: int = 15) -> dict[str, float]:
    """The kernels on a GPU that take the most time, as shares of all."""
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as seen:
        run()
        torch.cuda.synchronize()
    times = {
        event.key: event.self_device_time_total
        for event in seen.key_averages()
        if event.device_type == DeviceType.CUDA
    }
    total = sum(times.values())
    ranked = sorted(times, key=times.get, reverse=True)
    return {name: times[name] / total for name in ranked[:number]}


def device_name(device: torch.device) -> str:
    """Name of a GPU, or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    found = info.is_file() and re.search(
        r'^model name\s*:\s*(.+)$', info.read_text(), re.MULTILINE
    )
    return found[1] if found else platform.processor() or platform.machine()
