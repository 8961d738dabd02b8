"""Time a dynamic backbone against what one would use in its place.

Its dense twin, the host's own backbone with the same weights, and a smaller
static model of equal FLOPs take turns with it in one process. FLOPs are
multiply-adds per image; of a training step, those of its forward pass.

Without a checkpoint the images are noise, and routers with fixed shares
(random, by variance, uniform) meet a ratio of FLOPs; of other methods than
DGE the config's own routing runs, untrained. With a checkpoint that decides on
images of the validation set, each brought to the size.

FLOPs ratio: as realised in the precision that is timed; vs float32: how far
that is off on the first images; gap = time ratio - FLOPs ratio; realised =
saved time over saved FLOPs; MiB: above those of weights and inputs; launches
of kernels and waits for the GPU: of one run. ``--arms constant graph`` adds
the routed backbone with constant shapes, and it and its dense twin in a CUDA
graph.

Example::

    python tools/analysis_tools/benchmark.py CONFIG --size 800x1216 --ratio .45
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from itertools import product
from operator import floordiv
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import track_iter_progress
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mmdge
from mmdge import share_for_budget
from mmdge.calibration import fix_shapes
from mmdge.datasets import image_loader
from mmdge.models.architectures import (
    DPVT,
    PVT,
    Backbone,
    ConvNeXt,
    LVViT,
    PVTv2,
    Swin,
    ViT,
    backbone_class,
)
from mmdge.models.methods import Granularity, Pruning
from mmdge.models.weights import from_ours
from mmdge.utils import UserError, checks, launch, timing
from mmdge.utils.arguments import positive, ratio
from mmdge.utils.counting import flop_counter

Size = tuple[int, int]  # height and width
# What each host calls its record of an image.
SAMPLES = dict(
    mmdet='DetDataSample', mmseg='SegDataSample', mmpretrain='DataSample'
)
# Kinds of arms besides the dense twin.
INFERENCE = ('dynamic', 'variance', 'uniform', 'host', 'smaller')
CHECKPOINT = ('dynamic', 'host', 'smaller')
ON_DEMAND = ('constant', 'graph')  # beside either
TRAINING = ('dynamic', 'sparse', 'paper')
# Column, key of a row, how it is written, factor.
COLUMNS = (
    ('ms', 'median', '.4g', 1e3),
    ('from', 'lower', '.4g', 1e3),
    ('to', 'upper', '.4g', 1e3),
    ('GFLOPs', 'flops', '.4g', 1e-9),
    ('FLOPs ratio', 'flops_ratio', '.3f', 1),
    ('vs float32', 'dtype_shift', '+.3f', 1),
    ('time ratio', 'time_ratio', '.3f', 1),
    ('gap', 'gap', '+.3f', 1),
    ('realised', 'realised_share', '.2f', 1),
    ('MiB', 'memory', '.1f', 2**-20),
    ('images/s', 'images_per_second', '.4g', 1),
    ('launches', 'launches', 'd', 1),
    ('waits', 'waits', 'd', 1),
)


class Arm(NamedTuple):
    """One of those that take turns; ``flops`` if it doesn't count itself."""

    name: str
    kind: str
    backbone: nn.Module
    asked: float | None = None
    flops: int | None = None
    note: str = ''


def size(text: str) -> Size:
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise argparse.ArgumentTypeError(f'{text!r} is no HxW, as 800x1216')
    return int(found[1]), int(found[2])


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    several = partial(add, nargs='+')
    kinds = list(dict.fromkeys(INFERENCE + ON_DEMAND + TRAINING))
    dtypes = ['float32', 'bfloat16', 'float16']
    add('checkpoint', nargs='?', help='of the model, whose router decides')
    several('--size', type=size, default=[(512, 512)], metavar='HxW')
    several('--batch-size', type=positive, default=[1], metavar='N')
    several('--ratio', type=ratio, help='of FLOPs (default: 0.45)')
    several('--price', type=float, help='with a checkpoint (default: 0)')
    several('--dtype', choices=dtypes, default=dtypes[:1])
    several(
        '--arms', choices=kinds, help='default: all but constant and graph'
    )
    add('--scope', choices=['backbone', 'model'], default='backbone')
    add('--train', action='store_true', help='time forward and backward')
    add('--repeats', type=positive, default=15, help='default: 15')
    add('--device', choices=['cpu', 'cuda'], help='default: cuda, if there')
    add('--threads', type=positive, help="of the CPU (default: PyTorch's)")
    add('--json', help='write everything to this file, size after size')
    add('--markdown', metavar='FILE', help='write the tables to this file')
    args = parser.parse_args()
    kinds = CHECKPOINT if args.checkpoint else INFERENCE
    kinds = TRAINING if args.train else kinds
    args.arms = args.arms or kinds
    kinds += () if args.train else ON_DEMAND
    if args.train and (args.checkpoint or args.scope == 'model'):
        parser.error('--train: leave out the checkpoint and --scope model')
    if args.ratio and args.checkpoint:
        parser.error('--ratio is for random routing, --price for a router')
    if args.price and not args.checkpoint:
        parser.error('--price shifts a trained router: give a checkpoint')
    if wrong := ', '.join(kind for kind in args.arms if kind not in kinds):
        parser.error(f'--arms: {wrong} not, only {", ".join(kinds)} apply')
    on_gpu = torch.cuda.is_available()
    args.device = args.device or ('cuda' if on_gpu else 'cpu')
    if args.device == 'cuda' and not on_gpu:
        parser.error('--device cuda: PyTorch sees no GPU')
    if 'graph' in args.arms and (args.device, args.scope) != (
        'cuda',
        'backbone',
    ):
        parser.error('--arms graph: for a backbone on a GPU')
    args.ratio, args.price = args.ratio or [0.45], args.price or [0.0]
    return args


class Benchmark:
    """A config's backbone, the model it is part of, and their rivals."""

    def __init__(self, cfg: Config, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.whole = args.scope == 'model'
        self.config = {**cfg.model.backbone, 'init_cfg': None}
        if args.train:
            self.config['drop_path_rate'] = 0.0
        self.model, self.state, self.pool = None, {}, []
        self.graphs, self.refused = {}, []
        if args.checkpoint or self.whole:
            if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
                cfg.model.test_cfg.mode = 'whole'  # sizes are as asked for
            cfg.model.backbone.init_cfg = None  # nothing is downloaded
            self.model = launch.build_model(cfg, args.checkpoint).cpu()
            self.model.requires_grad_(False)
        # None of many backbones says which weights it loads.
        MMLogger.get_current_instance().setLevel('WARNING')
        if args.checkpoint:
            loader = image_loader(cfg, number=max(16, *args.batch_size))
            prepare = self.model.data_preprocessor
            self.pool = [prepare(data, False)['inputs'] for data in loader]
        elif self.whole:  # or a detector would be sure of all it proposes
            self.model.init_weights()
        source = self.model.backbone if self.model else self.build()
        self.state = source.state_dict()

    def build(self, **changes: Any) -> Backbone:
        """Build the backbone with other settings, and the same weights."""
        backbone = MODELS.build({**self.config, **changes})
        if self.state and 'arch' not in changes:
            own = 'routing' not in changes
            keys = [k for k in self.state if own or '.router.' not in k]
            state = {key: self.state[key] for key in keys}
            backbone.load_state_dict(state, strict=own)
        return backbone.eval()

    def images(self, size: Size, number: int, turn: int) -> Tensor:
        """The images of one turn, ``(number, C, *size)``, on the CPU."""
        if not self.pool:
            channels = self.config.get('in_channels', 3)
            noise = torch.Generator().manual_seed(0)
            return torch.randn(number, channels, *size, generator=noise)
        fit = partial(F.interpolate, mode='bilinear', antialias=True)
        indices = range(turn * number, (turn + 1) * number)
        chosen = [self.pool[i % len(self.pool)] for i in indices]
        return torch.cat([fit(image, size) for image in chosen])

    def samples(self) -> list:
        """What the host wants to know of each image."""
        roots = [k.__module__.split('.')[0] for k in type(self.model).mro()]
        host = next((root for root in roots if root in SAMPLES), None)
        if host is None:
            raise UserError(f'--scope model is for {", ".join(SAMPLES)}')
        sample = getattr(import_module(f'{host}.structures'), SAMPLES[host])
        keys = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        info = {**dict.fromkeys(keys, self.size), 'scale_factor': (1.0, 1.0)}
        numbers = range(self.number)
        return [sample(metainfo=dict(info, img_id=i)) for i in numbers]

    def arms(self, size: Size, notes: list[str]) -> Iterator[Arm]:
        """Build what takes turns; notes say what can't be built, and why."""
        args, twin, ratios = self.args, self.build(**dense(self.config)), []
        yield Arm('dense twin', 'dense', twin)
        if 'graph' in args.arms:
            yield Arm('dense twin, graph', 'graph', twin)
        if 'host' in args.arms:
            try:
                name, host = host_backbone(twin)
            except (ImportError, ValueError) as error:
                notes.append(f"left out, the host's own: {error}")
            else:
                flops = count_flops(copy.deepcopy(host).to('meta'), size)
                note = type(host).__name__
                yield Arm(f"{name}'s own", 'host', host, None, flops, note)
        by_shares = isinstance(twin, Granularity) and not args.checkpoint
        if not (by_shares or args.checkpoint):
            notes.append('left out, fixed shares: known for DGE alone')
        for asked in args.ratio if by_shares else args.price:
            if by_shares:
                ratios.append(asked)
                yield from self.fixed_shares(size, asked, notes)
                continue
            backbone = self.build(price=asked)
            with torch.inference_mode():
                backbone(self.images(size, 4, 0))
            ratios.append(backbone.cost.ratio.mean().item())
            if 'dynamic' in args.arms:
                yield Arm(f'price {asked:g}', 'dynamic', backbone, asked)
            name = f'price {asked:g}'
            yield from self.constant(name, backbone, size, asked, notes)
        if 'smaller' in args.arms and self.whole:
            notes.append('left out, smaller: the neck takes other channels')
        elif 'smaller' in args.arms and (
            not isinstance(twin, (PVT, ViT)) or isinstance(twin, Pruning)
        ):
            notes.append(
                'left out, smaller: known for PVTs and ViTs alone, and not '
                'for DynamicViT'
            )
        elif 'smaller' in args.arms:
            for asked in ratios:
                config = smaller_backbone(self.config, asked, size)
                note = '{embed_dims} x {num_layers}'.format(**config['arch'])
                name, backbone = f'smaller {asked:.3g}', self.build(**config)
                yield Arm(name, 'smaller', backbone, asked, None, note)

    def constant(
        self,
        name: str,
        backbone: Backbone,
        size: Size,
        asked: float,
        notes: list[str],
    ) -> Iterator[Arm]:
        """Give a backbone constant shapes, in a graph and without one."""
        kinds = [kind for kind in ON_DEMAND if kind in self.args.arms]
        if not kinds:
            return
        backbone = copy.deepcopy(backbone)
        try:
            fix_shapes(backbone, [self.images(size, 4, 0)])
        except UserError as error:
            notes.append(f'left out, constant shapes: {error}')
            return
        for kind in kinds:
            yield Arm(f'{name}, {kind}', kind, backbone, asked)

    def fixed_shares(
        self, size: Size, asked: float, notes: list[str]
    ) -> Iterator[Arm]:
        """Build those that meet a ratio by their shares of granularities."""
        try:
            share = share_for_budget(self.config, asked, size)
        except ValueError as error:
            raise UserError(str(error)) from error
        routings = dict(
            dynamic=dict(type='RandomRouter', share=share),
            variance=dict(type='QuantileRouter', share=share),
            uniform=dict(type='UniformRouter', share=share),
            sparse='learned',
            paper='learned',
        )
        for kind in (kind for kind in routings if kind in self.args.arms):
            change = dict(sparse_training=kind != 'paper')
            backbone = self.build(routing=routings[kind], **change)
            for router in backbone.routers if kind in TRAINING[1:] else ():
                # Its noise gives the shares, on any image.
                nn.init.zeros_(router.gate.weight)
                shares = torch.tensor(share).clamp(min=1e-9)
                router.gate.bias.data.copy_(shares.log())
            # This computes all granularities. Routers know no meta device.
            paper = kind == 'paper'
            flops = count_flops(backbone.train(), size) if paper else None
            name = 'random' if kind == 'dynamic' else kind
            yield Arm(f'{name} {asked:g}', kind, backbone, asked, flops)
        backbone = self.build(routing=routings['variance'])
        name = f'variance {asked:g}'
        yield from self.constant(name, backbone, size, asked, notes)

    def use(self, arms: list[Arm], dtype: torch.dtype) -> None:
        """Copy all arms to the device, and load the first images."""
        autocasts = self.args.train or self.whole  # as the hosts do
        self.weights = torch.float32 if autocasts else dtype
        self.autocast = self.device.type, dtype, self.weights != dtype
        self.known = {arm.name: arm.flops for arm in arms}
        self.backbones = {
            arm.name: copy.deepcopy(arm.backbone).to(self.device, self.weights)
            for arm in arms
        }
        for backbone in self.backbones.values():
            backbone.train(self.args.train)
        if self.whole:
            self.model.to(self.device)
            self.data_samples = self.samples()
        self.load(0)
        self.graphs, self.refused = {}, []
        for arm in arms:
            if arm.kind != 'graph':
                continue
            backbone = self.backbones[arm.name]
            try:
                with torch.inference_mode(), torch.autocast(*self.autocast):
                    graph = timing.in_graph(backbone, self.batch)
            except RuntimeError as error:  # of memory, too
                reason = str(error).partition('\n')[0]
                self.refused.append(f'left out, {arm.name}: {reason}')
            else:
                self.graphs[arm.name] = graph

    def load(self, turn: int) -> None:
        """Bring the images of a turn to the device; noise stays the same."""
        if turn and not self.pool:
            return
        images = self.images(self.size, self.number, turn)
        self.batch = images.to(self.device, self.weights)

    def run(self, name: str) -> None:
        """Do what is timed of an arm."""
        inference = torch.inference_mode(not self.args.train)
        with inference, torch.autocast(*self.autocast):
            if self.whole:
                self.model.backbone = self.backbones[name]
                self.model(self.batch, self.data_samples, mode='predict')
                return
            forward = self.graphs.get(name) or self.backbones[name]
            outs = tree_leaves(forward(self.batch))
        if self.args.train:
            sum(out.float().square().mean() for out in outs).backward()

    def turns(self, runs: Mapping[str, Any], rounds: Any) -> tuple[dict, dict]:
        """Times and FLOPs of what runs in turns."""
        flops = {name: [] for name in runs}

        def settle(name: str) -> None:
            backbone = self.backbones[name]
            ran = self.known[name] or backbone.cost.dynamic.mean().item()
            flops[name].append(ran)
            backbone.zero_grad(set_to_none=True)

        return timing.interleave(runs, rounds, self.device, settle), flops

    def measure(
        self, arms: list[Arm], size: Size, number: int, dtype: Any
    ) -> dict[str, Any]:
        """Run all in turns: seconds, FLOPs per image, bytes, fit for JSON."""
        self.size, self.number = size, number
        runs = {arm.name: partial(self.run, arm.name) for arm in arms}
        full, needs, rows, rest = {}, {}, [], 0
        if self.args.checkpoint and dtype != torch.float32:
            self.use(arms, torch.float32)
            _, full = self.turns(runs, range(1))
        self.use(arms, dtype)
        arms = [a for a in arms if a.kind != 'graph' or a.name in self.graphs]
        runs = {arm.name: runs[arm.name] for arm in arms}

        def look(name: str) -> None:
            needs[name] = timing.footprint(runs[name], self.device)

        looks = {name: partial(look, name) for name in runs}
        warm, first = self.turns(looks, range(2))
        fits = {name: run for name, run in runs.items() if warm[name]}
        if self.whole and fits:
            name = next(iter(fits))
            with flop_counter() as counter:
                self.run(name)
            rest = counter.get_total_flops() / 2 / number - first[name][0]

        def rounds() -> Iterator[int]:
            turns = range(self.args.repeats)
            for turn in track_iter_progress(turns, file=sys.stderr):
                self.load(turn)
                yield turn

        times, flops = self.turns(fits, rounds())
        for arm in arms:
            about = arm._asdict()
            del about['backbone'], about['flops']
            took = times.get(arm.name, [])
            row = dict(about, out_of_memory=not took, times=took)
            rows.append(row)
            if not took:
                continue
            row.update(timing.Quartiles.of(took)._asdict())
            row.update(
                flops=fmean(flops[arm.name]) + rest,
                images_per_second=number / row['median'],
                memory=needs[arm.name].memory,
                attention=needs[arm.name].kernels,
            )
            if arm.kind == 'graph':  # what it holds, it held before
                row['memory'] = None
            if self.device.type == 'cuda':
                row['launches'] = needs[arm.name].launches
                row['waits'] = needs[arm.name].waits
            if not rows[0]['out_of_memory']:
                row.update(ratios(row, rows[0]))
            if full.get(arm.name):  # of images that are the same
                shift = first[arm.name][0] - full[arm.name][0]
                row.update(dtype_shift=shift / full[arms[0].name][0])
        name = str(dtype).removeprefix('torch.')
        return dict(size=size, batch_size=number, dtype=name, rows=rows)


def ratios(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, float]:
    """A row's ratios to the dense twin's."""
    time = row['median'] / dense['median']
    flops = row['flops'] / dense['flops']
    realised = None if flops == 1 else (1 - time) / (1 - flops)
    found = dict(flops_ratio=flops, time_ratio=time, gap=time - flops)
    return dict(found, realised_share=realised)


def dense(config: Mapping) -> dict[str, Any]:
    """Arguments that make a config that of its dense twin."""
    by_regions = issubclass(backbone_class(config), Granularity)
    finest = dict(routing='finest')
    return finest | dict(granularities=(1,)) if by_regions else finest


def count_flops(backbone: nn.Module, size: Size) -> int:
    """Multiply-adds of one image, best on the meta device."""
    device = next(backbone.parameters()).device
    with flop_counter() as counter:
        backbone(torch.ones(1, backbone.in_channels, *size, device=device))
    return counter.get_total_flops() // 2


def host_backbone(twin: Backbone) -> tuple[str, nn.Module]:
    """Build the host's own backbone with the weights of a dense twin.

    Raises:
        ImportError: If the host is not installed.
        ValueError: If the host has no such backbone.
    """
    is_pvt = isinstance(twin, PVT) and not isinstance(twin, DPVT)
    if is_pvt and not twin.arch.get('linear'):
        from mmdet.models.backbones import (
            PyramidVisionTransformer,
            PyramidVisionTransformerV2,
        )

        name, num = 'mmdet', twin.num_stages
        arch = {
            key: list(values)[:num]
            for key, values in twin.arch.items()
            if key != 'linear'
        }
        widths = map(floordiv, arch.pop('embed_dims'), arch['num_heads'])
        width, *others = set(widths)
        if others:
            raise ValueError("mmdet's PVT has no heads of several widths")
        strides = twin.patch_sizes[:num]
        if isinstance(twin, PVTv2):
            kind = PyramidVisionTransformerV2
            if num < twin.max_stages:
                raise ValueError("mmdet's PVTv2 has all stages")
        else:
            kind = PyramidVisionTransformer
            sides = [side * twin.strides[0] for side in twin.pos_sizes[0]]
            arch |= dict(
                pretrain_img_size=sides,
                patch_sizes=strides,
                paddings=[0] * num,
            )
        host = kind(
            in_channels=twin.in_channels,
            embed_dims=width,
            num_stages=num,
            strides=strides,
            out_indices=twin.out_indices,
            norm_cfg=dict(type='LN', eps=1e-6),
            **arch,
        )
    elif isinstance(twin, Swin):
        from mmdet.models.backbones import SwinTransformer

        name, num = 'openmmlab', twin.num_stages
        host = SwinTransformer(
            in_channels=twin.in_channels,
            embed_dims=twin.arch['embed_dims'],
            depths=twin.arch['depths'][:num],
            num_heads=twin.arch['num_heads'][:num],
            window_size=twin.window_size,
            out_indices=twin.out_indices,
        )
    elif isinstance(twin, ConvNeXt):
        from mmpretrain.models import backbones

        name, num = 'mmpretrain', len(twin.stages)
        host = backbones.ConvNeXt(
            {key: values[:num] for key, values in twin.arch.items()},
            in_channels=twin.in_channels,
            layer_scale_init_value=twin.layer_scale_init_value,
            out_indices=list(twin.out_indices),
            gap_before_final_norm=twin.gap_before_final_norm,
        )
    elif isinstance(twin, ViT) and not (
        isinstance(twin, LVViT) or twin.apply_layernorm
    ):
        from mmpretrain.models import backbones

        name = 'mmpretrain'
        kind = f'{"Distilled" * twin.distilled}VisionTransformer'
        host = getattr(backbones, kind)(
            # Blocks that no output depends on are left out here, as in ours.
            arch={**twin.arch, 'num_layers': len(twin.blocks)},
            img_size=[side * twin.patch_size for side in twin.pos_size],
            patch_size=twin.patch_size,
            in_channels=twin.in_channels,
            out_indices=twin.out_indices,
            out_type=twin.out_type,
            final_norm=isinstance(twin.norm, nn.LayerNorm),
            layer_scale_init_value=twin.arch['layer_scale_init_value'],
            layer_cfgs=dict(ffn_type=twin.arch['ffn_type']),
        )
    else:
        raise ValueError(f'no host has one like {type(twin).__name__}')
    layout = next(known for known in twin.layouts if known.name == name)
    weights, dropped = from_ours(twin.state_dict(), layout)
    if dropped:
        raise ValueError(f'{name} has no place for {", ".join(dropped)}')
    # Swin's hosts keep what follows from sizes.
    found = host.load_state_dict(weights, strict=False)
    lacking = [k for k in found.missing_keys if not k.endswith('_index')]
    if lacking or found.unexpected_keys:
        raise ValueError(f'{name} has other parts: {lacking or found}')
    host.in_channels = twin.in_channels
    host.eval()  # mmpretrain's returns None
    return type(host).__module__.partition('.')[0], host


def smaller_backbone(config: Mapping, ratio: float, size: Size) -> dict:
    """Config of a static backbone with this ratio of the dense twin's FLOPs.

    Heads get narrower, in steps of 8 channels, and stages shorter, all to the
    same part give or take a block. What comes closest is returned.
    """
    config = dict(config, **dense(config), frozen_stages=-1)

    def meta(config: dict) -> Backbone:
        with torch.device('meta'):
            return MODELS.build(dict(config, init_cfg=None)).eval()

    full = meta(config)
    arch, wanted = full.arch, ratio * count_flops(full, size)
    flat = isinstance(arch['num_heads'], int)  # a single stage
    heads, dims = np.atleast_1d(arch['num_heads'], arch['embed_dims'])
    depths = [len(full.blocks)] if flat else arch['num_layers']
    head_dims = dims // heads

    def scaled(width: int, layers: tuple[int, ...]) -> dict:
        part = width / head_dims.max()
        wide = 8 * heads * np.round(part * head_dims / 8).clip(1).astype(int)
        changes = dict(embed_dims=tuple(wide.tolist()), num_layers=layers)
        if not flat:
            return dict(config, arch={**arch, **changes})
        changes = {key: value[0] for key, value in changes.items()}
        inner = arch['feedforward_channels'] / dims[0] * wide[0]
        changes.update(feedforward_channels=round(inner))
        ends = [layers[0] / depths[0] * (i + 1) for i in full.out_indices]
        outs = sorted({max(1, round(end)) - 1 for end in ends})
        return dict(config, arch={**arch, **changes}, out_indices=outs)

    every = np.array(list(product(*(range(1, n + 1) for n in depths))))
    # How many blocks a stage is off the same part of all, at most.
    parts = np.arange(1, max(depths) + 1)[:, None] / max(depths)
    off = abs(every[:, None] - parts * depths).max(-1).min(-1)
    widths, gaps = range(8, max(8, *head_dims) + 1, 8), []
    first = np.vstack([0 * every[:1], np.eye(len(depths), dtype=int)]) + 1
    for width in widths:  # FLOPs are linear in the depths
        models = (meta(scaled(width, tuple(n.tolist()))) for n in first)
        least, *more = (count_flops(model, size) for model in models)
        flops = least + (every - 1) @ (np.array(more) - least)
        gaps.append(abs(flops - wanted))
    near = np.where(off < 0.99, gaps, np.inf)
    if near.min() > 0.03 * wanted:  # as with stages of two blocks
        near = np.where(off < 1.01, gaps, np.inf)
    i, j = np.unravel_index(near.argmin(), near.shape)
    return scaled(widths[i], tuple(every[j].tolist()))


def cells_of(found: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """Title and cells of a table, names of the columns first."""
    title = '{size[0]} x {size[1]}, batch {batch_size}, {dtype}'
    columns = [
        column
        for column in COLUMNS
        if any(row.get(column[1]) is not None for row in found['rows'])
    ]
    cells = [['', *(name for name, *_ in columns), '']]
    for row in found['rows']:
        values = [
            '-' if row.get(key) is None else format(row[key] * factor, form)
            for _, key, form, factor in columns
        ]
        note = 'out of memory' if row['out_of_memory'] else row['note']
        cells.append([row['name'], *values, note])
    return title.format(**found), cells


def show(console: Console, found: dict[str, Any]) -> None:
    """Print what was found at one setting."""
    title, (names, *rows) = cells_of(found)
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table, *found['notes'], sep='\n')


def markdown(found: dict[str, Any]) -> str:
    """The same, for a page."""
    title, (names, *rows) = cells_of(found)
    lines = [names, ['---'] * len(names), *rows]
    table = [f'| {" | ".join(line)} |' for line in lines]
    notes = [f'- {note}' for note in found['notes']]
    return '\n'.join([f'{title}:', '', *table, '', *notes, ''])


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    if not backbone_class(cfg.get('model', {}).get('backbone') or {}):
        raise UserError(
            f'{args.config} has no dynamic backbone: set e.g. '
            "model.backbone.type='mmdge.DGEPVT'"
        )
    for option in ('json', 'markdown'):
        if path := getattr(args, option):
            checks.check_output(path, f'--{option}')
    if args.checkpoint:
        checks.check_checkpoint(args.checkpoint)
        checks.check_datasets(cfg, ['val'])
    scope = cfg.get('default_scope') or launch.host_of(cfg)
    init_default_scope(scope or 'mmdge')
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bench, console = Benchmark(cfg, args), Console(width=150, highlight=False)
    environment = vars(args) | dict(
        mmdge=mmdge.__version__,
        torch=torch.__version__,
        device=timing.device_name(bench.device),
        threads=torch.get_num_threads(),
        float32_products=torch.get_float32_matmul_precision(),
    )
    console.print(*map('{0[0]}: {0[1]}'.format, environment.items()), sep='\n')
    results = dict(environment=environment, settings=[])
    for size in args.size:
        notes = []
        arms = list(bench.arms(size, notes))
        for dtype, number in product(args.dtype, args.batch_size):
            found = bench.measure(arms, size, number, getattr(torch, dtype))
            found.update(notes=notes + bench.refused)
            show(console, found)
            results['settings'].append(found)
            if args.json:
                Path(args.json).write_text(json.dumps(results, indent=2))
            if args.markdown:
                tables = '\n'.join(map(markdown, results['settings']))
                Path(args.markdown).write_text(tables)


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
