"""Time all arms at one size, batch and precision."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmdge.models import routing
from mmdge.models.backbones import DynamicBackbone
from mmdge.utils import timing

from .arms import Arm, Subject

PRODUCT = 'matrix product'


class Setting:
    """Arms at one size, batch and precision.

    Args:
        subject (Subject): Whose images and model to use.
        arms (Sequence[Arm]): The dense twin first; they are moved.
        size (tuple[int, int]): Height and width of the images.
        number (int): Images of a batch.
        dtype (torch.dtype): Of weights and images, or what autocast uses.
        device (torch.device): Where to run.
    """

    def __init__(
        self,
        subject: Subject,
        arms: Sequence[Arm],
        size: tuple[int, int],
        number: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.subject, self.size, self.number = subject, size, number
        self.dtype, self.device = dtype, device
        self.arms = {arm.name: arm for arm in arms}
        self.weights = torch.float32 if subject.autocasts else dtype
        for arm in arms:
            arm.backbone.train(subject.train)
            arm.backbone.to(device, self.weights)
        self.samples = []
        if subject.whole:
            self.samples = subject.samples(size, number)
            subject.model.to(device)
        self._load(0)

    def measure(self, repeats: int) -> dict[str, Any]:
        """Run all in turns, each so many times.

        Returns:
            dict: What fits into JSON. Of its rows, one per arm: times in
            seconds, FLOPs (multiply-adds) per image, in training those of
            the forward pass, memory in bytes.
        """
        self._watches = {}
        if self.subject.whole:
            self._watches = {
                name: timing.Stopwatch(arm.backbone, self.device)
                for name, arm in self.arms.items()
            }
        self._forget()
        runs = {name: partial(self.run, name) for name in self.arms}
        needs = timing.warm_up(runs, self.device, self._settle)
        runs = {name: run for name, run in runs.items() if name in needs}
        rest = self._rest_flops(next(iter(runs), None))
        product, product_flops = timing.matrix_product(self.device, self.dtype)
        product()
        self._forget()
        runs[PRODUCT] = product
        times = timing.interleave(
            runs, self._turns(repeats), self.device, self._settle
        )
        for watch in self._watches.values():
            watch.remove()
        peak = product_flops / timing.Quartiles.of(times[PRODUCT]).median
        rows = []
        for name in self.arms:
            dense = rows[0] if rows else None
            took = times.get(name, [])
            rows.append(self._row(name, took, needs, rest, peak, dense))
        return dict(
            size=self.size,
            batch_size=self.number,
            dtype=str(self.dtype).removeprefix('torch.'),
            peak_flops=peak,
            rows=rows,
        )

    def run(self, name: str) -> None:
        """Do what is timed of an arm."""
        backbone, subject = self.arms[name].backbone, self.subject
        autocast = torch.autocast(
            self.device.type, self.dtype, self.weights != self.dtype
        )
        with torch.inference_mode(not subject.train), autocast:
            if subject.whole:
                subject.model.backbone = backbone
                subject.model(self.batch, self.samples, mode='predict')
                return
            outs = backbone(self.batch)
        if subject.train:
            loss = sum(out.float().square().mean() for out in _leaves(outs))
            loss.backward()

    def where_time_goes(self, name: str) -> dict[str, float]:
        """Shares of an arm's time: routing on a CPU, kernels on a GPU."""
        run = partial(self.run, name)
        if self.device.type == 'cuda':
            return timing.top_kernels(run)
        files = {
            str(path) for path in Path(routing.__file__).parent.glob('*.py')
        }
        # The block itself runs the layers, too: only its bookkeeping counts.
        files.remove(inspect.getfile(routing.DGEBlock))
        whole = type(self.arms[name].backbone).forward
        others = routing.DGEBlock._cost, DynamicBackbone.content
        return timing.time_in_files(
            run, whole.__code__, files, [each.__code__ for each in others]
        )

    def _load(self, turn: int) -> None:
        images = self.subject.images(self.size, self.number, turn)
        self.batch = images.to(self.device, self.weights)

    def _turns(self, repeats: int) -> Iterator[int]:
        for turn in track_iter_progress(range(repeats), file=sys.stderr):
            self._load(turn)
            yield turn

    def _forget(self) -> None:
        self._flops = {name: [] for name in self.arms}
        self._inside = {name: [] for name in self.arms}

    def _settle(self, name: str) -> None:
        """Note what a run did, and let go of its gradients."""
        if name == PRODUCT:
            return
        arm = self.arms[name]
        self._flops[name].append(arm.ran())
        if name in self._watches:
            self._inside[name].append(self._watches[name].take())
        arm.backbone.zero_grad(set_to_none=True)

    def _rest_flops(self, name: str | None) -> float:
        """Multiply-adds per image of the model besides its backbone."""
        if not self.subject.whole or name is None:
            return 0.0
        with FlopCounterMode(display=False) as counter:
            self.run(name)
        self._settle(name)
        seen = counter.get_flop_counts()
        root = type(self.subject.model).__name__
        whole, inside = (
            sum(seen.get(key, {}).values())
            for key in ('Global', f'{root}.backbone')
        )
        return (whole - inside) / 2 / self.number

    def _row(
        self,
        name: str,
        times: list[float],
        needs: Mapping[str, timing.Footprint],
        rest: float,
        peak: float,
        dense: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        arm = self.arms[name]
        row = dict(
            name=name,
            kind=arm.kind,
            asked=arm.asked,
            note=arm.note,
            out_of_memory=not times,
        )
        if not times:
            return row
        flops = fmean(self._flops[name])
        row.update(figures(times, flops + rest, dense))
        if self.subject.whole:
            beside = dense and dense.get('backbone', {})
            row['backbone'] = figures(self._inside[name], flops, beside)
        products = row['flops'] * self.number
        if self.subject.train:
            # A backward pass multiplies about twice as much as the forward
            # pass, but for what a router didn't choose there is none.
            backward = flops
            if arm.kind == 'paper':
                backward = arm.backbone.cost.dynamic.detach().mean().item()
            products += 2 * backward * self.number
        row.update(
            peak_share=products / row['median'] / peak,
            images_per_second=self.number / row['median'],
            memory=needs[name].memory,
            attention=needs[name].kernels,
        )
        return row


def figures(
    times: list[float], flops: float, dense: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Quartiles, and ratios to the dense twin.

    Args:
        times (list[float]): Seconds.
        flops (float): Multiply-adds per image.
        dense (dict | None): The twin's figures, without a median if it ran
            out of memory; None for those of the twin itself.
    """
    found = dict(
        timing.Quartiles.of(times)._asdict(), flops=flops, times=times
    )
    dense = found if dense is None else dense
    if 'median' in dense:
        in_time = found['median'] / dense['median']
        in_flops = flops / dense['flops']
        found.update(
            flops_ratio=in_flops,
            time_ratio=in_time,
            gap=in_time - in_flops,
            realised_share=timing.realised_share(in_time, in_flops),
        )
    return found


def host_difference(arms: Sequence[Arm], images: Tensor) -> float | None:
    """Largest absolute difference of the host's outputs from the twin's.

    Args:
        arms (Sequence[Arm]): In full precision, on the device of ``images``.
        images (Tensor): ``(B, C, H, W)``.

    Returns:
        float | None: None if the host's is not among the arms, or needs more
        memory than there is.
    """
    models = {arm.kind: arm.backbone for arm in arms}
    if 'host' not in models:
        return None
    try:
        with torch.inference_mode():
            outs = [models[kind](images) for kind in ('dense', 'host')]
    except (MemoryError, RuntimeError) as error:
        if timing.is_out_of_memory(error):
            return None
        raise
    return max(
        (a - b).abs().max().item()
        for a, b in zip(*map(_leaves, outs), strict=True)
    )


def _leaves(outs: Tensor | Sequence) -> Iterator[Tensor]:
    """All tensors of a backbone's output."""
    if isinstance(outs, Tensor):
        yield outs
    else:
        for out in outs:
            yield from _leaves(out)
