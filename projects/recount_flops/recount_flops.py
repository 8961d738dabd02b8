"""Recount the FLOPs that papers print for PVT, PVTv2, DeiT and ResNet-50.

Every model is built from its host's config, runs once, without weights, at
the input size of the papers, and is counted by PyTorch's own counter. Unit:
1e9 multiply-adds, of convolutions, linear layers and both attention products.
A number that a paper prints is held against the count with attention and
against the count without; the table says which of the two it is.

Example::

    python projects/recount_flops/recount_flops.py
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import track_iter_progress
from rich.console import Console
from rich.table import Table
from torch import nn

import mmdge  # noqa: F401  registers the backbones before a config asks
from mmdge.utils import UserError, checks, launch
from mmdge.utils.counting import flop_counter

# Proposals that the box head and the mask head of Mask R-CNN see, as when
# mmdet counts: all that its RPN may keep, and the first hundred of them.
NUM_BOXES, NUM_MASKS = 1000, 100

LAYERS = {
    torch.ops.aten.convolution,
    torch.ops.aten.addmm,
    torch.ops.aten.mm,
}
ATTENTION = {torch.ops.aten.bmm}


class Task(NamedTuple):
    """A model in which the backbones are compared.

    Attributes:
        host (str): The package whose config it is.
        config (str): The config with ResNet-50, under the host's ``configs``.
        size (tuple[int, int]): Height and width of the image.
    """

    host: str
    config: str
    size: tuple[int, int]


TASKS = {
    'RetinaNet': Task(
        'mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py', (800, 1280)
    ),
    'Mask R-CNN': Task(
        'mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', (800, 1280)
    ),
    'Semantic FPN': Task(
        'mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', (512, 512)
    ),
    'Classifier': Task(
        'mmpretrain', 'resnet/resnet50_8xb32_in1k.py', (224, 224)
    ),
}
SIZES = {'T': 'tiny', 'S': 'small', 'M': 'medium', 'L': 'large'}
BACKBONES = (
    'ResNet-50',
    *(f'PVT-{size}' for size in 'TSML'),
    *(f'PVTv2-B{number}' for number in range(6)),
    *(f'DeiT-{size}' for size in 'TS'),
)

COLUMNS = (
    'backbone',
    'conv, linear',
    'attention',
    'neck',
    'head',
    'total',
    'published',
    'which counts',
)

# Numbers in print, by the table where they stand. docs/flops.md names the
# papers.
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    'RetinaNet': {
        'ResNet-50': {'PVT, Tab. 11': 239.3},
        'PVT-S': {'PVT, Tab. 11': 285.8, 'CMT, Tab. 6': 226},
        'PVT-M': {'DiT, Tab. 3': 283},
        'PVT-L': {'CrossFormer, README': 345},
        'PVTv2-B2': {'PVTv2, Tab. 6': 290.7, 'DiT, Tab. 3': 290},
        'PVTv2-B3': {'DiT, Tab. 3': 378},
        'PVTv2-B4': {'DiT, Tab. 3': 482},
    },
    'Mask R-CNN': {
        'ResNet-50': {'iFormer, Tab. 3': 260},
        'PVT-T': {'MSVMamba, Tab. 2': 208},
        'PVT-S': {'PVT, Tab. 10': 304.4, 'iFormer, Tab. 3': 245},
        'PVT-M': {'iFormer, Tab. 3': 302},
        'PVT-L': {'CrossFormer, README': 364},
        'PVTv2-B2': {'InternImage, Tab. 3': 309},
        'PVTv2-B3': {'InternImage, Tab. 3': 397},
        'PVTv2-B4': {'DiT, Tab. 3': 500},
        'PVTv2-B5': {'InternImage, Tab. 3': 557},
    },
    'Semantic FPN': {
        'ResNet-50': {'PVT, Tab. 5': 45.6},
        'PVT-T': {'PVT, Tab. 5': 33.2},
        'PVT-S': {'PVT, Tab. 5': 44.5, 'Twins, Tab. 2': 40},
        'PVT-M': {'PVT, Tab. 5': 61.0, 'Twins, Tab. 2': 55},
        'PVT-L': {'PVT, Tab. 5': 79.6, 'Twins, Tab. 2': 71},
        'PVTv2-B0': {'PVTv2, Tab. 5': 25.0},
        'PVTv2-B1': {'PVTv2, Tab. 5': 34.2},
        'PVTv2-B2': {'PVTv2, Tab. 5': 45.8},
        'PVTv2-B3': {'PVTv2, Tab. 5': 62.4},
        'PVTv2-B4': {'PVTv2, Tab. 5': 81.3},
        'PVTv2-B5': {'PVTv2, Tab. 5': 91.1},
    },
    'Classifier': {
        'ResNet-50': {'PVT, Tab. 2': 4.1},
        'PVT-T': {'PVT, Tab. 2': 1.9},
        'PVT-S': {'PVT, Tab. 2': 3.8},
        'PVT-M': {'PVT, Tab. 2': 6.7},
        'PVT-L': {'PVT, Tab. 2': 9.8},
        'PVTv2-B0': {'PVTv2, Tab. 2': 0.6},
        'PVTv2-B1': {'PVTv2, Tab. 2': 2.1},
        'PVTv2-B2': {'PVTv2, Tab. 2': 4.0},
        'PVTv2-B3': {'PVTv2, Tab. 2': 6.9},
        'PVTv2-B4': {'PVTv2, Tab. 2': 10.1},
        'PVTv2-B5': {'PVTv2, Tab. 2': 11.8},
        'DeiT-T': {'PVT, Tab. 2': 1.3},
        'DeiT-S': {'PVT, Tab. 2': 4.6},
    },
}


class Recount(NamedTuple):
    """Multiply-adds of one image.

    Attributes:
        layers (int): Convolutions and linear layers of the backbone.
        attention (int): Both attention products of the backbone.
        neck (int): The neck.
        head (int): All heads.
    """

    layers: int
    attention: int
    neck: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


# Of each task and backbone.
Counts = Mapping[str, Mapping[str, Recount]]


def host_config(host: str, path: str) -> ConfigDict:
    """Read the model of a config that a host package brings along.

    By its file: ``mmseg::...`` asks for one of the two distributions that
    have this import name.
    """
    try:
        folder = Path(importlib.import_module(host).__file__).parent
    except ImportError as err:
        raise UserError(
            f'cannot import {host} ({err}); the recount needs mmdet, '
            'mmsegmentation and mmpretrain'
        ) from err
    return Config.fromfile(folder / '.mim' / 'configs' / path).model


def backbone_config(name: str, classify: bool) -> tuple[dict, list[int]]:
    """Return the config of a backbone but ResNet-50, and its channels."""
    family, size = name.split('-')
    if family == 'PVTv2':
        path = f'pvt/retinanet_pvtv2-{size.lower()}_fpn_1x_coco.py'
        model = host_config('mmdet', path)
        kind = f'mmdet.{model.backbone.type}'
        return {**model.backbone, 'type': kind}, model.neck.in_channels
    backbone = dict(
        type=f'mmdge.DGE{family}', arch=SIZES[size], routing='finest'
    )
    if classify:
        backbone['out_type'] = 'cls_token'
    if family == 'DeiT':
        return backbone, [192 if size == 'T' else 384]
    return {**backbone, 'with_cls_token': classify}, [64, 128, 320, 512]


def build(task: str, name: str) -> nn.Module:
    """Build a task's model with a backbone, on the meta device."""
    host, path, _ = TASKS[task]
    model = host_config(host, path)
    if name != 'ResNet-50':
        classify = task == 'Classifier'
        model.backbone, channels = backbone_config(name, classify)
        if classify:
            model.head.in_channels = channels[-1]
            if 'out_type' in model.backbone:  # nothing to pool
                model.neck = None
        elif len(channels) == 1:
            model.neck = dict(
                type='mmdge.SimpleFPN',
                in_channels=channels[0],
                out_channels=model.neck.out_channels,
                num_outs=model.neck.num_outs,
                start_level=model.neck.get('start_level', 0),
            )
        else:
            model.neck.in_channels = channels
    model.backbone.init_cfg = None  # a count needs no weights
    model.pop('pretrained', None)
    with DefaultScope.overwrite_default_scope(host):
        return MODELS.build(model).eval().to('meta')


@torch.no_grad()
def count(module: Callable, *inputs: Any) -> tuple[Any, int, int]:
    """Call a module and count.

    Returns:
        tuple: The output; the multiply-adds of layers; those of attention.

    Raises:
        RuntimeError: If something else was counted, which has no column.
    """
    with flop_counter() as counter:
        output = module(*inputs)
    seen = counter.get_flop_counts().get('Global', {})
    if unknown := seen.keys() - LAYERS - ATTENTION:
        raise RuntimeError(f'neither a layer nor attention: {unknown}')
    layers, attention = (
        sum(flops for op, flops in seen.items() if op in ops) // 2
        for ops in (LAYERS, ATTENTION)
    )
    return output, layers, attention


def head_calls(model: nn.Module, maps: Any) -> Iterator[tuple]:
    """Yield each head of a model with what it is given."""
    if not hasattr(model, 'roi_head'):
        (head,) = (
            getattr(model, name)
            for name in ('bbox_head', 'decode_head', 'head')
            if hasattr(model, name)
        )
        yield head, maps
        return
    yield model.rpn_head, maps
    rois = model.roi_head
    for head, extractor, number in (
        (rois.bbox_head, rois.bbox_roi_extractor, NUM_BOXES),
        (rois.mask_head, rois.mask_roi_extractor, NUM_MASKS),
    ):
        size = extractor.roi_layers[0].output_size
        shape = (number, extractor.out_channels, *size)
        yield head, torch.empty(shape, device='meta')


def recount(task: str, backbone: str) -> Recount:
    """Count one image through a task's model with a backbone."""
    model = build(task, backbone)
    image = torch.empty(1, 3, *TASKS[task].size, device='meta')
    maps, layers, attention = count(model.backbone, image)
    maps, neck = tuple(maps), 0
    if model.with_neck:
        maps, *ran = count(model.neck, maps)
        neck = sum(ran)
    head = sum(sum(count(*call)[1:]) for call in head_calls(model, maps))
    return Recount(layers, attention, neck, head)


def verdict(published: float, counted: Recount) -> str:
    """Which of two counts a published number is, and how far from it."""
    counts = {'all': counted.total / 1e9}
    if counted.attention:
        counts['no attention'] = (counted.total - counted.attention) / 1e9
    kind = min(counts, key=lambda name: abs(published - counts[name]))
    digits = len(str(published).partition('.')[2])
    if round(counts[kind], digits) == published:
        return kind
    return f'{kind}, {published / counts[kind] - 1:+.2%}'


def cells(task: str, backbone: str, counted: Recount) -> list[list[str]]:
    """Return a row of a task's table: one list of lines per column."""
    found = PUBLISHED[task].get(backbone, {})
    figures = (*counted, counted.total)
    return [
        [backbone],
        *([f'{f / 1e9:.2f}' if f else '-'] for f in figures),
        [f'{n} ({where})' for where, n in found.items()] or ['not found'],
        [verdict(n, counted) for n in found.values()],
    ]


def heading(task: str) -> str:
    height, width = TASKS[task].size
    return f'{task}, {height} x {width}'


def markdown_row(columns: Iterable[list[str]]) -> str:
    return f'| {" | ".join("<br>".join(lines) for lines in columns)} |\n'


def as_markdown(counts: Counts) -> str:
    """Write the tables as docs/flops.md holds them."""
    return '\n'.join(
        f'### {heading(task)}\n\n'
        + markdown_row([name] for name in COLUMNS)
        + '|---' * len(COLUMNS)
        + '|\n'
        + ''.join(
            markdown_row(cells(task, name, counted))
            for name, counted in row.items()
        )
        for task, row in counts.items()
    )


def as_json(counts: Counts) -> str:
    tasks = {
        task: {
            name: {
                **{part: n / 1e9 for part, n in counted._asdict().items()},
                'total': counted.total / 1e9,
                'published': PUBLISHED[task].get(name, {}),
            }
            for name, counted in row.items()
        }
        for task, row in counts.items()
    }
    return json.dumps(dict(unit='1e9 multiply-adds', **tasks), indent=2)


def report(counts: Counts) -> None:
    """Print the tables."""
    console = Console(width=125)
    for task, row in counts.items():
        table = Table(title=f'{heading(task)}, 1e9 multiply-adds per image')
        for number, column in enumerate(COLUMNS):
            justify = 'right' if 0 < number < 6 else 'left'
            table.add_column(column, justify=justify, no_wrap=True)
        for name, counted in row.items():
            columns = cells(task, name, counted)
            table.add_row(*('\n'.join(lines) for lines in columns))
        console.print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', help='write the figures to this file, too')
    parser.add_argument(
        '--markdown',
        help='write the tables to this file, too, as docs/flops.md holds them',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    outputs = {'json': as_json, 'markdown': as_markdown}
    for name in outputs:
        if path := getattr(args, name):
            checks.check_output(path, f'--{name}')
    counts = {task: {} for task in TASKS}
    pairs = [(task, name) for task in TASKS for name in BACKBONES]
    for task, name in track_iter_progress(pairs, file=sys.stderr):
        counts[task][name] = recount(task, name)
    report(counts)
    for name, write in outputs.items():
        if path := getattr(args, name):
            Path(path).write_text(write(counts))


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
