"""Time a dynamic backbone against what one would use in its place.

Its dense twin, the host's own backbone with the same weights, and a smaller
static model of equal FLOPs take turns with it in one process, so that the
ratios hold on a machine that is not quite idle. Unit of FLOPs: multiply-adds
of convolutions, linear layers and both attention products.

Without a checkpoint the images are noise and the regions are routed at
random, so that a ratio of FLOPs can be asked for. With one the config's own
router decides on images of the validation set, each brought to the size
after the host's pipeline.

Columns: gap = time ratio - FLOPs ratio; realised = saved time over saved
FLOPs; peak = share of the matrix product's, measured in the same run; memory
is above that of weights and inputs.

Example::

    python tools/analysis_tools/benchmark.py CONFIG --size 800x1216 --ratio .45
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console

import mmdge
from mmdge.benchmark import (
    CHECKPOINT,
    INFERENCE,
    SAMPLES,
    TRAINING,
    Setting,
    Subject,
    as_table,
    build_arms,
    draw,
    host_difference,
)
from mmdge.models.backbones import dynamic_class
from mmdge.utils import UserError, checks, launch, timing
from mmdge.utils.arguments import positive, ratio


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise argparse.ArgumentTypeError(f'{text!r} is no HxW, as 800x1216')
    return int(found[1]), int(found[2])


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        'checkpoint',
        nargs='?',
        help="the config's own router decides, with these weights and on "
        'images of the validation set, which go through the pipeline and are '
        'then brought to --size (default: random weights and routing, noise)',
    )
    add(
        '--size',
        type=size,
        nargs='+',
        default=[(512, 512)],
        metavar='HxW',
        help='of the images (default: 512x512)',
    )
    add(
        '--batch-size',
        type=positive,
        nargs='+',
        default=[1],
        metavar='N',
        help='images at once (default: 1)',
    )
    add(
        '--ratio',
        type=ratio,
        nargs='+',
        metavar='R',
        help='FLOPs of the backbone over dense ones, without a checkpoint '
        '(default: 0.45)',
    )
    add(
        '--price',
        type=float,
        nargs='+',
        metavar='P',
        help='of the routers, with a checkpoint (default: 0)',
    )
    add('--device', choices=['cpu', 'cuda'], help='default: cuda, if there')
    add(
        '--dtype',
        nargs='+',
        choices=['float32', 'bfloat16', 'float16'],
        default=['float32'],
        help='of weights and images; whole models and training steps use '
        'autocast (default: float32)',
    )
    add('--threads', type=positive, help="of the CPU (default: PyTorch's)")
    add(
        '--repeats',
        type=positive,
        default=15,
        help='timed runs of each (default: 15)',
    )
    add(
        '--scope',
        choices=['backbone', 'model'],
        default='backbone',
        help='model: predict with neck, head and post-processing, and show '
        "the backbone's part beside (default: backbone)",
    )
    add(
        '--train',
        action='store_true',
        help='time forward and backward: random routing, the learned router '
        "computing only what it chose (sparse) and everything (the paper's "
        'path), and the dense twin',
    )
    add(
        '--arms',
        nargs='+',
        choices=list(dict.fromkeys((*INFERENCE, *TRAINING))),
        help='what to time besides the dense twin (default: all that apply)',
    )
    add(
        '--profile',
        action='store_true',
        help='afterwards show where the time of the first one goes: the '
        'functions of the routing on a CPU, the kernels on a GPU',
    )
    add('--json', help='write everything to this file, size after size')
    add('--plot', help='draw time over FLOPs, and growth, to this file')
    return parser.parse_args()


def check(args: argparse.Namespace, cfg: Config) -> None:
    """Settle what depends on each other; raise a UserError if it clashes."""
    for name in ('json', 'plot'):
        if path := getattr(args, name):
            checks.check_output(path, f'--{name}')
    if args.plot:
        known = Figure().canvas.get_supported_filetypes()
        if Path(args.plot).suffix[1:] not in known:
            raise UserError(
                f'--plot {args.plot}: its name must end with one of '
                f'{", ".join(sorted(known))}'
            )
    on_gpu = torch.cuda.is_available()
    args.device = args.device or ('cuda' if on_gpu else 'cpu')
    if args.device == 'cuda' and not on_gpu:
        raise UserError('--device cuda: PyTorch sees no GPU; use cpu')
    if args.train and (args.checkpoint or args.scope == 'model'):
        raise UserError(
            '--train times the backbone with random weights; leave out the '
            'checkpoint and --scope model'
        )
    if args.ratio and args.checkpoint:
        raise UserError(
            '--ratio is for random routing; with a checkpoint the router '
            'decides, and --price shifts it'
        )
    if args.price and not args.checkpoint:
        raise UserError('--price shifts a trained router: give a checkpoint')
    args.ratio, args.price = args.ratio or [0.45], args.price or [0.0]
    allowed = CHECKPOINT if args.checkpoint else INFERENCE
    allowed = TRAINING if args.train else allowed
    args.arms = args.arms or allowed
    if not set(args.arms) <= set(allowed):
        raise UserError(
            f'--arms: of {", ".join(args.arms)} only {", ".join(allowed)} '
            'apply here'
        )
    config = cfg.get('model', {}).get('backbone') or {}
    if dynamic_class(config) is None:
        raise UserError(
            f'{args.config} has no dynamic backbone: set e.g. '
            "model.backbone.type='mmdge.DGEPVT'"
        )
    if args.scope == 'model' and cfg.get('default_scope') not in SAMPLES:
        raise UserError(
            f'--scope model needs default_scope in {args.config} to be one '
            f'of {", ".join(SAMPLES)}'
        )
    if args.checkpoint:
        if cfg.get('val_dataloader') is None:
            raise UserError(
                f'{args.config} has no val_dataloader, whose images a '
                'checkpoint is timed with'
            )
        checks.check_checkpoint(args.checkpoint)
        checks.check_datasets(cfg, ['val'])


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What the times depend on."""
    return dict(
        mmdge=mmdge.__version__,
        torch=torch.__version__,
        device=timing.device_name(torch.device(args.device)),
        threads=torch.get_num_threads(),
        float32_products=torch.get_float32_matmul_precision(),
        config=args.config,
        checkpoint=args.checkpoint,
        scope=args.scope,
        train=args.train,
        repeats=args.repeats,
    )


def settings(
    args: argparse.Namespace, subject: Subject
) -> Iterator[dict[str, Any]]:
    """Measure one size, precision and batch after the other."""
    device = torch.device(args.device)
    asked = args.price if args.checkpoint else args.ratio
    for size in args.size:
        notes = []
        arms = list(build_arms(subject, size, args.arms, asked, notes))
        off = host_difference(arms, subject.images(size, 1))
        for name, number in product(args.dtype, args.batch_size):
            dtype = getattr(torch, name)
            setting = Setting(subject, arms, size, number, dtype, device)
            found = setting.measure(args.repeats)
            found.update(host_difference=off, notes=notes)
            ran = [
                row['name']
                for row in found['rows'][1:]
                if row['kind'] not in ('host', 'smaller')
                and not row['out_of_memory']
            ]
            if args.profile and ran:
                found['profiled'] = ran[0]
                found['profile'] = setting.where_time_goes(ran[0])
            yield found


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    check(args, cfg)
    init_default_scope(cfg.get('default_scope', 'mmdge'))
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    subject = Subject(
        cfg,
        args.checkpoint,
        whole=args.scope == 'model',
        train=args.train,
        num_images=max(16, *args.batch_size),
    )
    results = dict(environment=environment(args), settings=[])
    console = Console(width=150, highlight=False)
    for key, value in results['environment'].items():
        console.print(f'{key}: {value}')
    for found in settings(args, subject):
        results['settings'].append(found)
        show(console, found)
        if args.json:
            Path(args.json).write_text(json.dumps(results, indent=2))
        if args.plot:
            draw(results['settings'], args.plot)


def show(console: Console, found: dict[str, Any]) -> None:
    """Print what was found at one setting."""
    console.print(as_table(found))
    users = {}
    for row in found['rows']:
        if not row['out_of_memory']:
            names = ', '.join(row['attention']) or 'plain matrix products'
            users.setdefault(names, []).append(row['name'])
    for names, arms in users.items():
        console.print(f'Attention of {", ".join(arms)}: {names}')
    peak = 2 * found['peak_flops'] / 1e9
    console.print(f'Matrix product: {peak:.4g} GFLOP/s, 2 per multiply-add')
    if found['host_difference'] is not None:
        console.print(
            "Largest difference of the host's own from the dense twin, in "
            f'float32: {found["host_difference"]:.2g}'
        )
    for note in found['notes']:
        console.print(note)
    profile = found.get('profile', {})
    if profile:
        console.print(
            f'{sum(profile.values()):7.2%} of {found["profiled"]} are:'
        )
    for part, share in profile.items():
        console.print(f'{share:7.2%}   {part}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
