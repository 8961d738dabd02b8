"""Which lever wins: a smaller input, routing, or both? Measured, and chosen.

One checkpoint is evaluated at each combination of input scale, method and
ratio of FLOPs, and timed as a whole model on this machine, all in turns. The
points that no other beats, in FLOPs or in milliseconds, are marked. One is
chosen: the cheapest within a drop, or the best within milliseconds; its
config and checkpoint are written, which the host's own test script runs.

Metrics are shown, and drops are meant, in points of 100: AP .453 is 45.3.
GFLOPs are 1e9 multiply-adds per image: the backbone's own, over the test set,
and the rest of the model as counted on the images that are timed. Time is
from the preprocessed images in memory to the predictions. What was measured
is kept: the same command goes on where it was interrupted.

Example::

    python tools/analysis_tools/operating_points.py CONFIG CHECKPOINT \
        --scale 1 .75 .5 --ratio .5 .7 --max-drop .5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine import fileio
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner, save_checkpoint
from torch import Tensor, nn

from mmdge import DGEViT, MergingViT, MixedPatchViT
from mmdge.calibration import (
    find_price,
    fit_routers,
    fold_price,
    load_images,
    ratio_at_price,
    set_price,
    warn_if_far,
)
from mmdge.calibration import operating_points as op
from mmdge.calibration.operating_points import COSTS, SPENT, Key, Point
from mmdge.datasets import image_loader
from mmdge.evaluation import with_metrics
from mmdge.models import hosts
from mmdge.models.architectures import ViT, backbone_class
from mmdge.models.methods import Granularity, Method
from mmdge.utils import UserError, checks, launch, plots, timing
from mmdge.utils.arguments import add_calibration_options, positive, ratio
from mmdge.utils.counting import multiply_adds
from mmdge.utils.tables import print_table

# The first of these among the metrics is the accuracy, else any.
ACCURACY = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU', 'accuracy/top1')
# Hooks that belong to a training, or to another budget.
OTHERS = ('CostHook', 'RoutingWarmupHook', 'RandomPriceHook')
RATIOS = [0.5, 0.7]
ATOMIC = dict(backend='mmdge.atomic')
CLOSE = 0.05  # to the milliseconds that are searched for


class Way(NamedTuple):
    """A way to run a checkpoint.

    Attributes:
        change (Callable): Changes the backbone's config, in place.
        family (type): Of the backbones that can.
        fitted (bool): Whether its routers are calibrated.
        control (bool): Whether it is never chosen.
    """

    change: Callable[[ConfigDict], None]
    family: type | tuple[type, ...] = (Granularity, ViT)
    fitted: bool = False
    control: bool = False


def reroute(backbone: ConfigDict, routing: str, vit: type) -> None:
    """Give a backbone of ours another routing.

    A plain ViT of another kind than ``vit`` becomes one, without the
    arguments that other kinds alone know.
    """
    kind = backbone_class(backbone)
    if issubclass(kind, ViT) and not issubclass(kind, vit):
        known = *signature(ViT).parameters, 'type'
        for key in [key for key in backbone if key not in known]:
            backbone.pop(key)
        backbone.type = f'mmdge.{vit.__name__}'
    op.set_routing(backbone, routing)


def routed(routing: str, **kwargs: Any) -> Way:
    """The same backbone, or a ViT by regions, with another routing."""
    return Way(partial(reroute, routing=routing, vit=DGEViT), **kwargs)


def on_vit(vit: type, routing: str, **kwargs: Any) -> Way:
    """A ViT's weights in the backbone of another method."""
    return Way(partial(reroute, routing=routing, vit=vit), ViT, **kwargs)


# One line more is one method more.
METHODS = {
    'dense': Way(partial(op.set_routing, routing='finest'), object),
    'own': Way(lambda backbone: None, Method),
    'error': routed('error', fitted=True),
    'variance': routed('variance'),
    'uniform': routed('uniform'),
    'random': routed('random', control=True),
    'mixed': on_vit(MixedPatchViT, 'effect', fitted=True),
    'mixed-variance': on_vit(MixedPatchViT, 'variance'),
    'mixed-uniform': on_vit(MixedPatchViT, 'uniform'),
    'mixed-random': on_vit(MixedPatchViT, 'random', control=True),
    'merging': on_vit(MergingViT, 'effect', fitted=True),
    'merging-variance': on_vit(MergingViT, 'variance'),
    'merging-random': on_vit(MergingViT, 'random', control=True),
}


def scale(text: str) -> float:
    """A factor of the input's sides, for argparse."""
    with suppress(ValueError):
        if 0 < float(text) <= 4:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is no scale of at most 4')


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    several, number = partial(add, nargs='+'), partial(add, type=positive)
    what = 'factors of height and width of the images (default: 1 .75 .5)'
    add('checkpoint', help='weights of the model')
    several('--scale', type=scale, default=[1.0, 0.75, 0.5], help=what)
    what = (
        'ways to run the checkpoint; own: as the config says, at its own '
        'price, or at those of --ratio; error: calibrated as by '
        'make_dynamic.py (default: dense, and own if the config routes, else '
        'error)'
    )
    several('--method', choices=METHODS, help=what)
    what = (
        'of dynamic to dense FLOPs of the backbone at each scale, for which '
        'prices are found (default: .5 .7); a single one is a target, too, '
        'if dense at scale 1 is measured: the best point of so much of its '
        'FLOPs'
    )
    several('--ratio', type=ratio, help=what)
    target = parser.add_mutually_exclusive_group().add_argument
    what = (
        'choose the cheapest point at most D points of 100 below the dense '
        'model at scale 1: a drop of 1 from AP .453 leaves .443'
    )
    target('--max-drop', type=float, metavar='D', help=what)
    what = (
        'choose the best point within T milliseconds per image of the whole '
        'model, batch 1; a price that takes T is searched for'
    )
    target('--ms', type=float, metavar='T', help=what)
    add('--metric', help='that counts, as the evaluation names it')
    add_calibration_options(parser)
    what = 'of these, for errors to be fitted to (default: 32)'
    number('--num-fit', default=32, help=what)
    what = 'images of the test set to time and to count (default: 8)'
    number('--num-timed', default=8, help=what)
    number('--batch-size', default=8, help='timed beside 1 (default: 8)')
    what = 'rounds of timing; 0 for none (default: 7)'
    add('--repeats', type=int, default=7, help=what)
    what = 'folder to write to (default: work_dirs/<config-stem>_points)'
    add('--out', type=Path, help=what)
    args = parser.parse_args()
    if args.ms is not None and not args.repeats:
        parser.error('--ms needs times: leave out --repeats 0')
    return args


class Bench:
    """A config, its checkpoint, and what was measured of them."""

    def __init__(self, cfg: Config, args: argparse.Namespace) -> None:
        self.cfg, self.args = cfg, args
        self.stem, self.host = Path(cfg.filename).stem, launch.host_of(cfg)
        self.folder = args.out or Path(f'work_dirs/{self.stem}_points')
        self.file = self.folder / 'points.json'
        kind = backbone_class(cfg.model.backbone) or object
        ways = [
            k for k, way in METHODS.items() if issubclass(kind, way.family)
        ]
        if cfg.model.backbone.get('num_classes') is not None:
            # CF-ViT's head takes the logits that no other backbone has.
            ways = [k for k in ways if k in ('dense', 'own')]
        self.methods = args.method or ['dense']
        if wrong := ', '.join(k for k in self.methods if k not in ways):
            raise UserError(
                f'--method {wrong}: {cfg.model.backbone.type} can run as '
                f'{", ".join(ways)} alone'
            )
        self.model = launch.build_model(cfg, args.checkpoint)
        if not checks.is_whole_model(args.checkpoint, self.model):
            raise UserError(
                f'{args.checkpoint} holds a backbone alone; what is measured '
                'is a whole model'
            )
        # The counter follows gradients even where there are none.
        self.own = self.model.requires_grad_(False).backbone
        self.device = next(self.own.parameters()).device
        self.static = kind is object
        if self.static:
            print(
                f'{cfg.model.backbone.type} has no dynamic form: measured is '
                'what the scale of its input alone gives; there is one of '
                f'{hosts.known_types()}, see docs/your_own_config.md'
            )
            patch = cfg.model.backbone.get('patch_size')
            self.stride = patch if isinstance(patch, int) else 32
            self.region = self.stride
        else:
            self.stride = max(self.own.strides)
            sides = zip(self.own.strides, self.own.cells, strict=False)
            self.region = min(stride * cell for stride, cell in sides)
            routes = any(router.priced for router in self.own.routers)
            better = 'own' if routes else 'error'
            if not args.method and better in ways:
                self.methods.append(better)
        self.record = self.read()
        self.points: list[Point] = self.record['points']
        self.bases, self.batches, self.counts, self.runners = {}, {}, {}, {}
        self.calibration = None, []

    def read(self) -> dict[str, Any]:
        """What an earlier run has left, which must be of the same model."""
        args, weights = self.args, self.args.checkpoint
        if '://' not in weights:
            weights = Path(weights).expanduser().read_bytes()
            weights = hashlib.sha256(weights).hexdigest()
        model = json.dumps(self.cfg.to_dict(), sort_keys=True, default=str)
        parts = model, weights, args.split, args.num_images, args.num_fit
        identity = hashlib.sha256(str(parts).encode()).hexdigest()
        if not self.file.exists():
            about = dict(config=args.config, checkpoint=args.checkpoint)
            return dict(about, identity=identity, points=[])
        found = json.loads(self.file.read_text())
        if found['identity'] != identity:
            raise UserError(
                f'{self.file} is of another config or checkpoint, or was '
                'calibrated by other images; remove it, or name another --out'
            )
        print(f'going on with the {len(found["points"])} points measured')
        return found

    def save(self) -> None:
        """Write it, as a whole or not at all."""
        found = [name for point in self.points for name in point['metrics']]
        wanted = self.args.metric
        metric = wanted if wanted in found else accuracy_of(found)
        self.record['metric'] = metric
        factor = op.points_of_100(metric, self.host)
        for point in self.points:
            # A detector that finds nothing has no AP.
            point['value'] = factor * point['metrics'].get(metric, 0.0)
        text = json.dumps(self.record, indent=2)
        fileio.put_text(text, str(self.file), backend_args=ATOMIC)
        if found and wanted and wanted != metric:
            raise UserError(
                f'--metric {wanted} is none of those that the config has: '
                f'{", ".join(dict.fromkeys(found))}'
            )

    def find(self, key: Key) -> Point | None:
        """The point of a key, if it was measured."""
        return next((p for p in self.points if op.key_of(p) == key), None)

    def config(self, scale: float, method: str = 'dense') -> Config:
        """The config of a scale and method."""
        cfg = op.scale_config(self.cfg, scale, self.stride)
        if self.static:  # ours would look for a dynamic one
            launch.replace_hooks(cfg, *OTHERS, 'GranularityVisHook')
        else:
            METHODS[method].change(cfg.model.backbone)
        return cfg

    def images(self, scale: float) -> list[Tensor]:
        """Those to calibrate with; of one scale at a time."""
        if self.calibration[0] != scale:
            cfg, args = self.config(scale), self.args
            found = load_images(cfg, self.model, args.num_images, args.split)
            self.calibration = scale, found
        return self.calibration[1]

    def tested(self, scale: float) -> tuple[list[dict], list[dict]]:
        """Some of the test set as the model gets them: singly, and a batch.

        Raises:
            UserError: If one is smaller than a region.
        """
        if scale not in self.batches:
            cfg, number = self.config(scale), self.args.batch_size
            cfg.val_dataloader = cfg.test_dataloader
            loader = image_loader(cfg, number=self.args.num_timed)
            numbers = range(len(loader.dataset))
            try:
                items = [loader.dataset[number] for number in numbers]
                sides = [item['inputs'].shape[-2:] for item in items]
                least = min(map(min, sides))
            except cv2.error:  # it would resize to nothing
                least = 0
            if least < self.region:
                raise UserError(
                    f'--scale {scale:g} leaves an image of {least} pixels, '
                    f'less than a region of the backbone, {self.region}'
                )
            # Not every host takes images of several sizes together.
            shapes = Counter(item['inputs'].shape for item in items)
            shape = shapes.most_common(1)[0][0]
            alike = [item for item in items if item['inputs'].shape == shape]
            batches = [[item] for item in items], [(alike * number)[:number]]
            prepare = self.model.data_preprocessor
            self.batches[scale] = tuple(
                [prepare(loader.collate_fn(part), False) for part in parts]
                for parts in batches
            )
        return self.batches[scale]

    def base(self, scale: float, method: str) -> nn.Module:
        """A method's backbone; one that is fitted is of a scale."""
        fitted = METHODS[method].fitted
        key = fitted and scale, method
        if key in self.bases:
            return self.bases[key]
        cfg = self.config(scale, method)
        model = launch.build_model(cfg, self.args.checkpoint)
        backbone = self.bases[key] = model.backbone.requires_grad_(False)
        if fitted:
            # Or what goes on later might differ in the last digit.
            known = self.record['identity'][:8]
            file = self.folder / f'routers/{method}-{scale:g}-{known}.pth'
            routers = nn.ModuleList(backbone.routers)
            if file.exists():
                state = torch.load(file, 'cpu', weights_only=True)
                routers.load_state_dict(state)
            else:
                fit_routers(model, self.images(scale), self.args.num_fit)
                states = routers.state_dict()
                save_checkpoint(states, str(file), backend_args=ATOMIC)
        return backbone

    def backbone(self, point: Point) -> nn.Module:
        """A point's backbone, whose parameters are those of its base."""
        base = self.base(point['scale'], point['method'])
        if self.static:
            return base
        backbone = op.share_weights(base).eval()
        fitted = METHODS[point['method']].fitted
        (fold_price if fitted else set_price)(backbone, point['price'])
        return backbone

    @torch.no_grad()
    def predict(self, backbone: nn.Module, batches: list[dict]) -> None:
        """Run the whole model upon a backbone."""
        self.model.backbone = backbone
        for batch in batches:
            self.model(**batch, mode='predict')

    def dense(self) -> AbstractContextManager:
        """Run the config's own backbone without its routing."""
        return nullcontext() if self.static else self.own.as_dense_twin()

    def runner(self, scale: float) -> Runner:
        """The host's runner of a scale, for whatever backbone."""
        if scale not in self.runners:
            cfg = self.config(scale)
            cfg.load_from, cfg.resume = None, False
            cfg.work_dir = str(self.folder)
            # Averaged weights are the checkpoint's own already.
            launch.replace_hooks(cfg, '*EMAHook', *OTHERS)
            if not self.static:
                launch.replace_hooks(cfg, cost=cost_hook(1.0))
                names = 'mmdge.BackboneFLOPs', 'mmdge.RatioByContent'
                metrics = [dict(type=name) for name in names]
                cfg.test_evaluator = with_metrics(cfg.test_evaluator, *metrics)
            self.runners[scale] = launch.build_runner(cfg)
            self.runners[scale].model = self.model
        return self.runners[scale]

    def part_of_backbone(self) -> None:
        """Say what a cheaper backbone can gain at best."""
        if 'whole_ms' not in self.record:
            images, calls, own = self.tested(1.0)[0], [], self.own
            with self.dense(), torch.no_grad():
                handle = own.register_forward_pre_hook(
                    lambda module, args: calls.append(args)
                )
                with handle:  # the first run warms up, too
                    self.predict(own, images)
                runs = dict(
                    whole=partial(self.predict, own, images),
                    backbone=lambda: [own(*args) for args in calls],
                )
                rounds = range(max(3, self.args.repeats))
                times = timing.interleave(runs, rounds, self.device)
            whole, part = (float(np.median(times[name])) for name in runs)
            self.record['device'] = timing.device_name(self.device)
            self.record['whole_ms'] = 1e3 * whole / len(images)
            # Noise may make it more than all.
            self.record['backbone_part'] = min(part / whole, 1.0)
            self.save()
        whole, part = self.record['whole_ms'], self.record['backbone_part']
        print(
            f'The backbone takes {part:.0%} of the {whole:.4g} ms per image '
            f'of the whole model, dense, at scale 1 ({self.record["device"]}, '
            f'batch 1).\nA cheaper backbone can gain at best:'
        )
        for asked in (*sorted(self.args.ratio or RATIOS)[::-1], 0):
            left = 1 - part * (1 - asked)
            faster = f', {1 / left:.2f} times as fast' if left else ''
            print(f'  at a ratio of {asked:g}: {whole * left:.4g} ms{faster}')

    def plan(self) -> list[Key]:
        """The points to measure, those of a scale together."""
        args, ratios = self.args, self.args.ratio or RATIOS
        full = [(1.0, 'dense', None)] * (args.max_drop is not None)
        asked = dict.fromkeys(METHODS, ratios) | {'dense': [None]}
        # With milliseconds as the target its price is to be searched for.
        routers = getattr(self.own, 'routers', ())
        priced = any(router.priced for router in routers)
        if not args.ratio and not (priced and args.ms is not None):
            asked['own'] = [None]
        keys = [
            (scale, method, each)
            for scale in self.args.scale
            for method in self.methods
            for each in asked[method]
        ]
        return list(dict.fromkeys(full + keys))

    def start(self, key: Key) -> Point:
        """A point with its price, not evaluated yet.

        Raises:
            UserError: If no price meets its ratio.
        """
        scale, method, asked = key
        config, spent = self.config(scale, method).model.backbone, None
        price = float(config.get('price', 0.0))
        if asked is not None:
            base = self.base(scale, method)
            ratio_at = ratio_at_price(base, self.images(scale))
            price, spent = find_price(ratio_at, asked)
            warn_if_far(asked, spent)
        return dict(
            scale=scale,
            method=method,
            control=METHODS[method].control,
            ratio_asked=asked,
            ratio_calibrated=spent,
            price=price,
            routing=config.get('routing'),
        )

    def evaluate(self, point: Point) -> None:
        """Test a point, and keep what was found."""
        print(f'evaluating {op.describe(point)}')
        runner, scale = self.runner(point['scale']), point['scale']
        self.model.backbone = self.backbone(point)
        metrics = point['metrics'] = scalars(runner.test())
        point['log'] = last_evaluation(runner)
        whole, dense = self.count(scale)
        if self.static:
            found = dense.mean(), *np.percentile(dense, [5, 95]), dense.mean()
            ends = '', '_p5', '_p95', '_dense'
            for end, flops in zip(ends, found, strict=True):
                metrics[SPENT + end] = float(flops)
        # The test set may have other sizes than the images counted.
        rest = metrics[f'{SPENT}_dense'] * (whole.sum() / dense.sum() - 1)
        point['model_GFLOPs'] = float(metrics[SPENT] + rest)
        self.points.append(point)
        self.save()

    def count(self, scale: float) -> np.ndarray:
        """GFLOPs of whole model and dense backbone, image by image."""
        if scale not in self.counts:
            name, counts = f'{type(self.model).__name__}.backbone', []
            with self.dense():
                for image in self.tested(scale)[0]:
                    run = partial(self.predict, self.own, [image])
                    counts.append(multiply_adds(run, [name]))
            self.counts[scale] = np.array(counts).T / 1e9
        return self.counts[scale]

    def clock(
        self, points: list[Point], batch: bool = False
    ) -> list[dict[str, float] | None]:
        """Quartiles of the seconds per image of points, in turns.

        None is for those that run out of memory.
        """
        runs, number = {}, self.args.batch_size
        for index, point in enumerate(points):
            images = self.tested(point['scale'])[batch]
            number = number if batch else len(images)
            runs[index] = partial(self.predict, self.backbone(point), images)
        timing.interleave(runs, range(1), self.device)  # warms up
        rounds = range(self.args.repeats)
        times = timing.interleave(runs, rounds, self.device)
        return [
            timing.Quartiles.of(np.array(t) / number)._asdict() if t else None
            for t in times.values()
        ]

    def time(self) -> None:
        """Time all points in turns, unless they were."""
        args = self.args
        timed = [args.repeats, args.num_timed, args.batch_size]
        timed += map(op.describe, self.points)
        if args.repeats and self.record.get('timed') != timed:
            print(f'timing {len(self.points)} points in turns')
            for name, batch in (('seconds', False), ('seconds_batch', True)):
                times = self.clock(self.points, batch)
                for point, seconds in zip(self.points, times, strict=True):
                    point[name] = seconds
            self.record['timed'] = timed
            self.save()

    def search(self, wanted: float) -> None:
        """Evaluate the best method at a price that takes so many ms."""
        if any(point.get('ms_asked') == wanted for point in self.points):
            return
        lines = []
        for scale, method in {op.key_of(p)[:2] for p in self.points}:
            line = {
                p['ratio_asked'] or 1.0: p
                for p in op.choosable(self.points)
                if op.key_of(p) == (scale, 'dense', None)
                or (op.key_of(p)[:2] == (scale, method) and p['ratio_asked'])
            }
            times = {asked: op.cost(p, 'ms') for asked, p in line.items()}
            if len(line) > 1 and wanted < max(times.values()):
                asked = op.ratio_for_time(times, wanted)
                values = [line[each]['value'] for each in sorted(line)]
                expected = np.interp(asked, sorted(line), values)
                lines.append((expected, scale, method, line, times))
        for _, scale, method, line, times in sorted(lines, reverse=True):
            for _ in range(5):
                asked = round(op.ratio_for_time(times, wanted), 4)
                if asked in line:
                    break
                try:
                    line[asked] = self.start((scale, method, asked))
                except UserError:  # no price meets it
                    break
                took = [t['median'] for t in self.clock([*line.values()])]
                times = {r: 1e3 * t for r, t in zip(line, took, strict=True)}
                name = op.describe(line[asked])
                print(f'{name} takes {times[asked]:.4g} ms')
                if abs(times[asked] - wanted) <= CLOSE * wanted:
                    break
            asked = min(times, key=lambda ratio: abs(times[ratio] - wanted))
            if abs(times[asked] - wanted) <= op.MET * wanted:
                line[asked]['ms_asked'] = wanted
                if 'metrics' not in line[asked]:
                    self.evaluate(line[asked])
                    self.time()
                return
        if lines:
            print(f'no price was found that takes {wanted:g} ms')

    def write(self, point: Point) -> Path:
        """Write a point's config and checkpoint; return the config's path."""
        cfg = self.config(point['scale'], point['method'])
        if not self.static:
            if not METHODS[point['method']].fitted and point['ratio_asked']:
                cfg.model.backbone.price = point['price']
            budget = round(point['metrics']['backbone/FLOPs_ratio'], 3)
            hook = cost_hook(min(1.0, budget))
            launch.replace_hooks(cfg, *OTHERS, cost=hook)
        self.model.backbone = self.backbone(point)
        name = f'{self.stem}_{op.describe(point).replace(" ", "-")}.pth'
        return launch.write_run(cfg, self.model, self.folder / name)

    def show(self) -> None:
        """Print the points as a table."""
        rows, form = [], '{1:.4g} ({0:.4g}-{2:.4g})'.format
        for point in sorted(self.points, key=lambda p: op.cost(p, 'GFLOPs')):
            scale, method, asked = op.key_of(point)
            row = f'{scale:g}', method, f'{asked:g}' if asked else '-'
            row += f'{point["value"]:.2f}', point['model_GFLOPs']
            row += (form(*op.spread(point, 'backbone')),)
            if self.args.repeats:
                together = (point['seconds_batch'] or op.UNTIMED)['median']
                row += form(*op.spread(point, 'ms')), 1e3 * together
            front = [name for name in COSTS if point.get(f'front_{name}')]
            rows.append((*row, ' '.join(front)))
        columns = 'scale', 'method', 'ratio', self.record['metric'], 'GFLOPs'
        columns += ('of the backbone (p5-p95)',)
        if self.args.repeats:
            columns += 'ms (quartiles)', f'ms, batch {self.args.batch_size}'
        columns += ('on the front of',)
        print_table('Operating points', columns, rows, width=150)

    def draw(self) -> Path:
        """Draw the metric over both costs; return the picture's path."""
        panels = []
        for name in COSTS[: 1 + bool(self.args.repeats)]:
            lines = defaultdict(list)
            for point in self.points:
                scale, method, asked = op.key_of(point)
                line = f'{method}, scale {scale:g}' if asked else method
                place = [op.spread(point, name), [point['value']] * 3]
                lines[line].append(np.array(place))
            title = f'{name} of the whole model, per image'
            metric = f'{self.record["metric"]}, points of 100'
            panels.append(plots.Plot(title, metric, '', lines))
        figure = plots.draw(panels, 6.4, 4.8)
        for panel, name in zip(figure.axes, COSTS, strict=False):
            front = []
            for point in self.points:
                place = op.cost(point, name), point['value']
                front += [place] * point.get(f'front_{name}', False)
                scale, method, asked = op.key_of(point)
                panel.annotate(
                    f'{asked or scale:g}',
                    place,
                    (5, -11 if method == 'dense' else 4),
                    textcoords='offset points',
                    fontsize=8,
                )
            panel.plot(*np.array(sorted(front)).T, 'k:', label='front')
            panel.legend(fontsize=8)
        path = self.file.with_suffix('.png')
        figure.savefig(path, dpi=120)
        return path


def cost_hook(budget: float) -> dict[str, Any]:
    return dict(type='mmdge.CostHook', budget=budget, loss_weight=0.0)


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The single numbers; NumPy's types, some of them, JSON does not know."""
    found = {}
    for key, value in metrics.items():
        # Not of a list by class, or a confusion matrix.
        with suppress(TypeError, ValueError, RuntimeError):
            found[key] = float(value)
    return found


def last_evaluation(runner: Runner) -> str | None:
    """The log line with the metrics of the last evaluation."""
    log = Path(runner.log_dir, f'{runner.timestamp}.log')
    lines = log.read_text().splitlines() if log.exists() else []
    return next((line for line in lines[::-1] if '(test)' in line), None)


def accuracy_of(metrics: Sequence[str]) -> str:
    """The metric that counts, of the first where there are several sets.

    It is no part of an evaluation in which nothing was detected.
    """
    for name in ACCURACY:
        for metric in metrics:
            if f'/{metric}'.endswith(f'/{name}'):
                return metric
    others = [key for key in metrics if not key.startswith('backbone/')]
    return (*others, *ACCURACY)[0]


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options)
    checks.check_checkpoint(args.checkpoint)
    checks.check_datasets(cfg, ['test', args.split])
    model = cfg.get('model') or {}
    needed = dict(test_dataloader=cfg, test_evaluator=cfg, backbone=model)
    if lacking := [key for key, where in needed.items() if not where.get(key)]:
        raise UserError(f'{args.config} has no {", ".join(lacking)}')
    try:
        launch.exchange_backbone(cfg)
    except UserError as error:  # as it is, at other sizes of its input
        print(error)
    bench, unmet = Bench(cfg, args), []
    bench.folder.mkdir(parents=True, exist_ok=True)
    bench.part_of_backbone()
    missing = [key for key in bench.plan() if not bench.find(key)]
    for scale, *_ in missing:
        bench.tested(scale)  # what is too small is refused at once
    for key in missing:
        try:
            point = bench.start(key)
        except UserError as error:
            unmet.append(f'scale {key[0]:g} {key[1]}: {error}')
            continue
        bench.evaluate(point)
    bench.time()
    if args.ms is not None and not bench.static:
        bench.search(args.ms)
    said = op.mark_fronts(bench.points)
    bench.save()
    bench.show()
    print(*said, f'wrote {bench.file} and {bench.draw()}', sep='\n')
    full = bench.find((1.0, 'dense', None))
    target = dict(ms=args.ms, drop=args.max_drop)
    if full and len(args.ratio or []) == 1:
        target['ratio'] = args.ratio[0]
    if unmet and not op.choosable(bench.points):
        raise UserError('; '.join(unmet))
    if any(wanted is not None for wanted in target.values()):
        by = COSTS[bool(args.repeats)]
        chosen = op.choose(bench.points, full, **target, by=by)
        path = bench.write(chosen)
        print(
            f'chosen is {op.describe(chosen)}, {op.figures(chosen)}\nwrote '
            f"{path}; next, or with {bench.host}'s own test.py:\n"
            f'  python tools/test.py {path} {path.with_suffix(".pth")}'
        )
    if unmet:
        raise UserError('; '.join(unmet))


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
