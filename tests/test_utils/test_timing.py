"""Timing in turns: order, memory, attention, running out of memory."""

import gc
import time
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from mmdge.utils import timing

CPU = torch.device('cpu')
TOO_MUCH = 1 << 50


@pytest.mark.parametrize('names', ['ab', 'abc', 'abcd', 'abcdef'])
def test_every_round_runs_each_once_in_an_order_that_changes(names):
    ran, seen = [], []

    def run(name):
        ran.append(name)
        assert not gc.isenabled()

    num = len(names)
    times = timing.interleave(
        {name: lambda name=name: run(name) for name in names},
        range(2 * num),
        CPU,
        seen.append,
    )
    assert seen == ran
    assert all(len(of) == 2 * num for of in times.values())
    rounds = [ran[i : i + num] for i in range(0, 2 * num**2, num)]
    assert all(sorted(order) == list(names) for order in rounds)
    for place in range(num):
        assert {order[place] for order in rounds} == set(names)
    before = {pair for order in rounds for pair in pairwise(order)}
    if num > 2:  # each has had at least two others before it
        assert all(len([b for b in before if b[1] == n]) >= 2 for n in names)
    assert gc.isenabled()


def test_times_are_those_of_the_runs():
    waits = {'long': 0.03, 'short': 0.01}
    times = timing.interleave(
        {name: lambda s=s: time.sleep(s) for name, s in waits.items()},
        range(3),
        CPU,
        after=lambda name: time.sleep(0.05),
    )
    for name, wait in waits.items():
        assert wait <= timing.Quartiles.of(times[name]).median < wait + 0.03


def test_what_runs_out_of_memory_stops_and_the_others_go_on():
    runs = dict(
        small=lambda: torch.empty(3),
        large=lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
    )
    times = timing.interleave(runs, range(3), CPU)
    assert len(times['small']) == 3 and times['large'] == []


def test_other_errors_are_not_passed_over():
    runs = dict(wrong=lambda: torch.empty(2) @ torch.empty(3))
    with pytest.raises(RuntimeError, match='size'):
        timing.interleave(runs, range(2), CPU)
    assert gc.isenabled()
    assert timing.is_out_of_memory(torch.OutOfMemoryError('CUDA'))
    assert timing.is_out_of_memory(MemoryError())
    assert not timing.is_out_of_memory(RuntimeError('size mismatch'))


def test_quartiles():
    assert timing.Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == (2, 3, 4)
    assert timing.Quartiles.of([7.0]) == (7, 7, 7)


def test_memory_is_the_highest_that_is_held_at_once():
    held = torch.ones(1000, dtype=torch.uint8)

    def run():
        first = torch.empty(3 << 20, dtype=torch.uint8)
        del first
        second = torch.empty(2 << 20, dtype=torch.uint8)
        third = torch.empty(2 << 20, dtype=torch.uint8)
        return second, third, held

    found = timing.footprint(run, CPU)
    assert found.memory == 4 << 20
    assert (found.launches, found.waits) == (0, 0)  # there is no GPU


def test_memory_of_a_backward_pass_counts():
    weight = torch.ones(1 << 20, requires_grad=True)
    x = torch.ones(1 << 20)
    run = (weight * x).sum
    assert timing.footprint(run, CPU).memory < 100
    step = timing.footprint(lambda: (weight * x).sum().backward(), CPU)
    assert step.memory >= weight.grad.nbytes == 4 << 20


@pytest.mark.parametrize('fused', [True, False])
def test_attention_kernels_are_named(fused):
    q = torch.rand(1, 2, 64, 32, requires_grad=True)

    def run():
        with torch.nn.attention.sdpa_kernel(
            torch.nn.attention.SDPBackend.FLASH_ATTENTION
            if fused
            else torch.nn.attention.SDPBackend.MATH
        ):
            F.scaled_dot_product_attention(q, q, q).sum().backward()

    (name,) = timing.footprint(run, CPU).kernels
    assert ('flash' in name) == fused and ('math' in name) != fused
    assert timing.footprint(lambda: q @ q.mT, CPU).kernels == []


def test_the_name_of_the_device_is_said():
    assert timing.device_name(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    device = torch.device('cuda')
    x = torch.ones(1 << 20, device=device)

    def run():
        y = torch.empty(2 << 20, dtype=torch.uint8, device=device)
        return y, x + x

    found = timing.footprint(run, device)
    assert found.memory == 6 << 20
    assert (found.launches, found.waits) == (1, 0)
    waits = timing.footprint(lambda: (x + x).sum().item(), device)
    assert (waits.launches, waits.waits) == (2, 1)

    def add(x):
        return (x + x) * x - x

    with torch.inference_mode():
        graph = timing.in_graph(add, x)
        found = timing.footprint(lambda: graph(3 * x), device)
        assert found.launches == 2  # one is 3 * x
        assert graph(3 * x).eq(15).all()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)
    y = torch.ones(8192, 8192, device=device, dtype=torch.float16)
    times = timing.interleave({'y': lambda: y @ y}, range(3), device)
    assert 1e12 < 8192**3 / min(times['y']) < 1e16  # it is waited for
