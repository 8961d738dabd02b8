"""All methods, one architecture each: train, measure, note a row per arm.

Every static model is trained once. A method starts from its weights, without
training, or trained for a third to a half of that time more, and so does the
static model. What is noted already isn't run again, and an arm whose training
or config is missing is left out until it is there::

    python projects/study/methods.py train      # one after the other
    python projects/study/methods.py measure    # accuracy, FLOPs, maps
    python projects/study/methods.py time       # with nothing else running
    python projects/study/methods_page.py
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from mmengine.config import Config, DictAction
from mmengine.utils import get_git_hash
from plan import ROOT, STUDY
from rows import Row, Rows
from run import DIGITS, KEPT
from torch import Tensor, nn

from mmdge.calibration import (
    find_price,
    load_images,
    ratio_at_price,
    set_price,
)
from mmdge.calibration.operating_points import scale_config
from mmdge.datasets import image_loader
from mmdge.evaluation.ratio_by_content import correlation
from mmdge.models import share_for_budget
from mmdge.models.cost import ComputeMap
from mmdge.utils import UserError, launch, timing
from mmdge.utils.arguments import positive
from mmdge.utils.counting import multiply_adds

CONFIGS = ROOT / 'configs/shapes'
ROWS = STUDY / 'methods.jsonl'
RATIO = 0.6  # of what is not trained; most others are near
CELL = 8  # pixels of the input, of the maps that are compared
PRICED = 16  # images on which a price is found for the oracle
COUNTED = 4  # images on which neck and head are counted
# Entries of a config for a training that goes on from the static weights: as
# those that train a method at once, which have it in their configs.
TUNED = dict.fromkeys(('backbone', 'neck', 'bbox_head', 'head'), 0.1)
# What belongs to a training alone.
HOOKS = '*VisHook', 'DistillHook', 'RoutingWarmupHook', 'RandomPriceHook'


class Training(NamedTuple):
    """What is trained: its folder, its config, entries of that, its start."""

    name: str
    config: str
    options: dict[str, Any]
    start: Training | None = None


def further(epochs: int, **lr_mult: float) -> dict[str, Any]:
    """Entries of a config: so many epochs from trained weights on.

    Args:
        epochs (int): Of all.
        **lr_mult (float): Factors of the learning rate of what is new.
    """
    keys = {k: dict(lr_mult=v) for k, v in (TUNED | lr_mult).items()}
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'optim_wrapper.paramwise_cfg': dict(custom_keys=keys),
    }


@dataclass(frozen=True)
class Family:
    """An architecture on a task.

    Attributes:
        config (str): Of the static model.
        scales (tuple[float, ...]): Of the input, as which it competes.
        epochs (int): For which methods, and it, are trained further.
    """

    config: str
    scales: tuple[float, ...] = (0.875, 0.75)
    epochs: int = 2

    @property
    def static(self) -> Training:
        """The training from which all start."""
        return Training(self.config, self.config, {})

    @property
    def longer(self) -> Training:
        """The static model, trained as long as a method."""
        name = f'{self.config}_longer'
        return Training(name, self.config, further(self.epochs), self.static)


FAMILIES = {
    'DeiT crops': Family('deit_shapes-crops', (5 / 6, 2 / 3, 0.5), 4),
    'PVT': Family('retinanet_pvt_fpn_shapes'),
    'DeiT': Family('retinanet_deit_simplefpn_shapes'),
    'Swin': Family('retinanet_swin_fpn_shapes'),
    'PVTv2': Family('retinanet_pvtv2_fpn_shapes', epochs=3),
    'DPVT': Family('retinanet_dpvt_fpn_shapes'),
}
STATIC, ERROR, RANDOM = 'static', 'DGE, by error', 'DGE, random'


@dataclass(frozen=True)
class Arm:
    """One of those that are compared.

    Attributes:
        family (str): Of ``FAMILIES``.
        name (str): For the tables.
        config (str): Of ``configs/shapes``; by default the static model's.
        weights (str): ``'static'``, ``'longer'``, or ``'own'``: from a
            training of this config, which began with the static ones, or
            ``afresh``.
        scale (float): Of the input.
        ratio (float | None): Of FLOPs, for which a price is found, on the
            training's images; None is the config's own.
        made (bool): Whether ``make_dynamic.py`` calibrates it for the ratio.
        options (dict): Further entries of the config.
        training (dict): Further ones of its training.
        afresh (bool): Whether that begins with no weights.
        suffix (str): Of its folder, where another has the config's name.
    """

    family: str
    name: str
    config: str = ''
    weights: str = 'static'
    scale: float = 1.0
    ratio: float | None = None
    made: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    afresh: bool = False
    suffix: str = ''

    @property
    def trained(self) -> Training:
        """The training that its weights come from."""
        family = FAMILIES[self.family]
        if self.weights != 'own':
            return getattr(family, self.weights)
        name = '_'.join(filter(None, (self.config, self.suffix)))
        start = None if self.afresh else family.static
        return Training(name, self.config, self.training, start)

    @property
    def static(self) -> bool:
        """Whether it computes the same everywhere."""
        return self.name.startswith(STATIC)


def arms_of(name: str) -> Iterator[Arm]:
    """The arms of a family."""
    family = FAMILIES[name]
    yield Arm(name, STATIC)
    for scale in family.scales:
        yield Arm(name, f'{STATIC}, input x {scale:.3g}', scale=scale)
    yield Arm(name, f'{STATIC}, trained longer', weights='longer')
    yield Arm(name, ERROR, ratio=RATIO, made=True)
    if name == 'PVT':
        yield Arm(
            *(name, 'DGE, learned', 'retinanet_dge-pvt-learned_fpn_shapes'),
            weights='own',
            # Or its routers would not get anywhere in so short a time.
            training=further(2, **{'router.gate': 30.0})
            | {'default_hooks.cost.budget': RATIO},
        )
        yield Arm(name, RANDOM, ratio=RATIO)
    if name == 'DeiT':
        config = 'retinanet_dynamic-vit_simplefpn_shapes'
        yield Arm(name, 'DynamicViT', config, 'own')
        config = 'retinanet_cf-vit_simplefpn_shapes'
        yield Arm(name, 'CF-ViT', config, 'own')
        for title, kind in (
            ('mixed patches', 'MixedPatchViT'),
            ('merging', 'MergingViT'),
        ):
            options = {'model.backbone.type': f'mmdge.{kind}'}
            yield Arm(name, title, ratio=RATIO, made=True, options=options)
    if name == 'DeiT crops':
        # What CF-ViT's coarse pass sees, and no more.
        both = ['horizontal', 'vertical']
        half = [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(48, 48)),
            dict(type='RandomFlip', prob=0.5, direction=both),
            dict(type='PackInputs'),
        ]
        yield Arm(
            *(name, f'{STATIC}, trained at x 0.5', family.config, 'own'),
            scale=0.5,
            training={'train_dataloader.dataset.pipeline': half},
            afresh=True,
            suffix='half',
        )
        yield Arm(name, 'DynamicViT', 'dynamic-vit_shapes-crops', 'own')
        cf_vit = partial(
            *(Arm, name),
            config='cf-vit_shapes-crops',
            weights='own',
            afresh=True,  # as long as the static model's own training
        )
        yield cf_vit('CF-ViT')  # all images go on
        for ratio in (0.35, 0.5, RATIO, 0.7):
            yield cf_vit(f'CF-ViT at {ratio:g}', ratio=ratio)
        random = {'model.backbone.routing': 'random'}
        title = 'CF-ViT, random'
        yield cf_vit(f'{title} at {RATIO:g}', ratio=RATIO, options=random)
        coarse = {'model.backbone.price': 1.0}
        yield cf_vit('CF-ViT, coarse pass alone', options=coarse)
    if name == 'Swin':
        config = 'retinanet_dynamic-swin_fpn_shapes'
        yield Arm(name, 'DynamicSwin', config, 'own')
    if name == 'PVTv2':
        # .69 of the FLOPs, for as long as static model and method together.
        depths = {'model.backbone.arch.num_layers': (1, 2, 1, 1)}
        yield Arm(
            *(name, f'{STATIC}, smaller', family.config, 'own'),
            options=depths,
            training={**depths, 'train_cfg.max_epochs': 9},
            afresh=True,
            suffix='smaller',
        )
        config = 'retinanet_token-routing-pvtv2_fpn_shapes'
        yield Arm(name, 'token routing', config, 'own')
        # Open 10 % of all tokens and paths: about as many FLOPs.
        gates = dict(_delete_=True, type='RandomRouter', share=(0.1, 0.9))
        random = {'model.backbone.routing': gates}
        yield Arm(
            *(name, 'token routing, random gates', config, 'own'),
            options=random,
            training=random,
            suffix='random-gates',
        )


ARMS = tuple(chain.from_iterable(map(arms_of, FAMILIES)))


def compute_map(maps: Sequence[ComputeMap], size: tuple[int, int]) -> Tensor:
    """What each place of an image got, the mean over the decisions.

    Those on a whole image are left out, unless there are no others.

    Args:
        maps (Sequence[ComputeMap]): At least one.
        size (tuple[int, int]): Height and width of the input in pixels.

    Returns:
        Tensor: Share of the dense compute of each cell of 8 x 8 pixels,
        ``(B, H / 8, W / 8)``.
    """
    grid = [side // CELL for side in size]
    local = [decided for decided in maps if decided.shows_place]
    found = []
    for decided in local or maps:
        share = decided.share.double()
        pixels = share.repeat_interleave(decided.cell, 1)
        pixels = pixels.repeat_interleave(decided.cell, 2)
        # Where a border narrower than a token is cut off, maps end early.
        bottom, right = (
            max(0, side - own)
            for side, own in zip(size, pixels.shape[1:], strict=True)
        )
        pixels = F.pad(pixels[:, None], (0, right, 0, bottom), 'replicate')
        pixels = pixels[..., : size[0], : size[1]]
        found.append(F.adaptive_avg_pool2d(pixels, grid)[:, 0])
    return torch.stack(found).mean(0)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Spearman's correlation inside each image; 0 where either is constant.

    Args:
        ours (np.ndarray): Maps ``(N, h, w)``.
        theirs (np.ndarray): Likewise.

    Returns:
        np.ndarray: ``(N,)``, in [-1, 1].
    """
    ranks = (
        # Sums in another order are no difference.
        pd.DataFrame(maps.reshape(len(maps), -1)).round(6).rank(axis=1)
        for maps in (ours, theirs)
    )
    pairs = zip(*(r.to_numpy() for r in ranks), strict=True)
    return np.array([correlation(*pair) for pair in pairs])


def on_objects(maps: np.ndarray, boxes: Iterable[np.ndarray]) -> float:
    """How much more a pixel inside the boxes gets than one outside.

    Args:
        maps (np.ndarray): As of :func:`compute_map`, ``(N, h, w)``.
        boxes (Iterable): Of each image, ``(n, 4)``: x, y, x, y in pixels.

    Returns:
        float: Mean share inside over mean share outside.
    """
    inside = np.zeros((len(maps), *(CELL * side for side in maps.shape[1:])))
    for mask, found in zip(inside, boxes, strict=True):
        for left, top, right, bottom in np.asarray(found).round().astype(int):
            mask[top:bottom, left:right] = 1
    pixels = maps.repeat(CELL, 1).repeat(CELL, 2)
    return float(
        np.average(pixels, weights=inside)
        / np.average(pixels, weights=1 - inside)
    )


class Seen(NamedTuple):
    """Maps ``(N, h, w)`` of a model, and the boxes that are there, if any."""

    maps: np.ndarray
    boxes: list[np.ndarray]


@torch.no_grad()
def look(cfg: Config, model: nn.Module, number: int) -> Seen:
    """See where a model computes, on images of the validation set."""
    maps, boxes = [], []
    for data in image_loader(cfg, number=number):
        data = model.data_preprocessor(data, False)
        model(**data, mode='predict')
        size = tuple(data['inputs'].shape[2:])
        maps.append(compute_map(model.backbone.cost.maps, size))
        (sample,) = data['data_samples']
        if 'gt_instances' in sample:
            found = sample.gt_instances.bboxes
            boxes.append(getattr(found, 'tensor', found).numpy())
    return Seen(torch.cat(maps).numpy(), boxes)


class Bench:
    """Trainings, models, and what is measured of them.

    Args:
        folder (Path): With one folder per training.
        rows (Rows): To add to.
        num_images (int): Whose maps are compared.
        options (Mapping): Entries of every config, for a quick trial.
    """

    def __init__(
        self,
        folder: Path,
        rows: Rows,
        num_images: int = 32,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.rows = folder.absolute(), rows
        self.num_images, self.options = num_images, dict(options or {})
        self.oracle = cache(self._oracle)

    def load(self, stem: str, options: Mapping[str, Any]) -> Config:
        """Read a config of shapes.

        Raises:
            UserError: If there is none.
        """
        # As a part of a name and a whole entry; the trial's come last.
        cfg = launch.load_config(CONFIGS / f'{stem}.py', options)
        cfg.merge_from_dict(self.options)
        return cfg

    def weights(self, training: Training) -> Path:
        """What a training that came to its end has left.

        Raises:
            UserError: If there is none.
        """
        epochs = self.load(training.config, training.options).train_cfg
        name = f'{training.name}/epoch_{epochs.max_epochs}.pth'
        if not (self.folder / name).exists():
            raise UserError(f'{name} is missing')
        return self.folder / name

    def run(self, log: str, tool: str, *arguments: object) -> None:
        """Run a tool, and keep what it prints."""
        command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / tool]
        path = self.folder / f'{log}.log'
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a') as file:
            done = subprocess.run(
                [str(part) for part in (*command, *arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise UserError(f'{tool} failed, see the end of {path}')

    def train(self, training: Training) -> None:
        """Train, or go on where it was interrupted."""
        try:
            self.weights(training)
        except UserError:
            cfg = self.load(training.config, training.options)
            if training.start:
                cfg.load_from = str(self.weights(training.start))
            path = self.folder / f'{training.name}.py'
            self.folder.mkdir(parents=True, exist_ok=True)
            cfg.dump(path)
            print(f'training {training.name}', flush=True)
            folder = self.folder / training.name
            options = path, '--work-dir', folder, '--resume'
            self.run(training.name, 'train.py', *options)

    def note_training(self, family: str, training: Training) -> None:
        """Note what a training took, by the times in its log."""
        if self.rows.of(family, 'training', training.name, None, None):
            return
        logs = (self.folder / training.name).glob('*/vis_data/scalars.json')
        lines = (json.loads(line) for log in logs for line in log.open())
        steps = {e['step']: e['time'] for e in lines if 'lr' in e}
        if steps:
            middle = float(np.median(list(steps.values())))
            self.rows.add(
                [
                    self.row(family, 'training', training.name)
                    | dict(
                        metric='s per iteration',
                        value=round(middle, DIGITS),
                        minutes=round(middle * max(steps) / 60, 2),
                    )
                ]
            )

    def row(self, family: str, phase: str, arm: str) -> Row:
        """The head of a row."""
        return dict(
            setting=family,
            seed=0,
            phase=phase,
            arm=arm,
            budget=None,
            asked=None,
            commit=get_git_hash(digits=8),
            date=date.today().isoformat(),
        )

    def noted(self, arm: Arm, phase: str) -> bool:
        """Whether its row is there."""
        return bool(self.rows.of(arm.family, phase, arm.name, None, None))

    def place(self, arm: Arm) -> Path:
        """The folder for what is made of an arm."""
        name = f'{arm.family} {arm.name}'.replace(',', '').replace(' ', '-')
        return self.folder / 'methods' / name

    def prepare(self, arm: Arm) -> tuple[Config, Path]:
        """Config and weights to test it with.

        Raises:
            UserError: If its training, or its config, is missing, or no
                price meets its ratio.
        """
        weights, place = self.weights(arm.trained), self.place(arm)
        stem = arm.config or FAMILIES[arm.family].config
        cfg = self.load(stem, arm.options)
        if arm.made:
            name = f'{stem}_dynamic-{arm.ratio:g}'
            path, made = place / f'{name}.py', place / f'{name}.pth'
            if not path.exists():
                place.mkdir(parents=True, exist_ok=True)
                cfg.dump(place / f'{stem}.py')
                self.run(
                    *(made.relative_to(self.folder).with_suffix(''),),
                    *('analysis_tools/make_dynamic.py', place / f'{stem}.py'),
                    *(weights, '--ratio', arm.ratio, '--out', place),
                )
            return launch.load_config(path), made
        if arm.name == RANDOM:
            # None at the coarsest, which an untrained model bears least.
            side = cfg.model.backbone.pretrain_img_size
            share = share_for_budget(
                dict(cfg.model.backbone, routing='random'),
                *(arm.ratio, (side, side)),
                start=(0, 1, 0),
            )
            cfg.model.backbone.routing = dict(type='RandomRouter', share=share)
        elif arm.ratio is not None:
            model = launch.build_model(cfg, weights)
            images = load_images(cfg, model, 128)
            ratio_at = ratio_at_price(model.backbone, images)
            cfg.model.backbone.price, _ = find_price(ratio_at, arm.ratio)
        return scale_config(cfg, arm.scale), weights

    def measure(self, arm: Arm) -> None:
        """Note accuracy, FLOPs, and where it computes."""
        cfg, weights = self.prepare(arm)
        model = launch.build_model(cfg, weights)
        metrics = self.test(arm, cfg, weights)
        name = f'{type(model).__name__}.backbone'
        whole, part = multiply_adds(
            partial(predict, model, tested(cfg, model, COUNTED)), [name]
        )
        rest = (whole - part) / COUNTED / 1e9  # neck and head
        metrics['GFLOPs'] = metrics['backbone/GFLOPs'] + rest
        if not arm.static:
            seen = look(cfg, model, self.num_images)
            metrics |= self.compare(arm, seen, metrics['backbone/FLOPs_ratio'])
        detects = launch.host_of(cfg) == 'mmdet'
        key = 'coco/bbox_mAP' if detects else 'accuracy/top1'
        row = self.row(arm.family, 'methods', arm.name) | dict(
            metric=key,
            # A detector that finds nothing has no AP.
            value=round(metrics.get(key, 0.0), DIGITS),
            metrics={k: round(v, DIGITS) for k, v in metrics.items()},
            images=self.num_images,
            training=arm.trained.name,
            price=float(cfg.model.backbone.get('price', 0.0)),
        )
        self.rows.add([row])

    def test(self, arm: Arm, cfg: Config, weights: Path) -> dict[str, float]:
        """Evaluate on the whole validation set."""
        cfg = copy.deepcopy(cfg)
        launch.replace_hooks(cfg, *HOOKS)
        cfg.log_level = 'WARNING'
        cfg.load_from, cfg.resume = str(weights), False
        cfg.work_dir = str(self.place(arm) / 'test')
        kept = *KEPT, 'accuracy/top1', 'backbone/GFLOPs_std'
        found = launch.build_runner(cfg).test()
        return {key: found[key] for key in kept if key in found}

    def compare(self, arm: Arm, seen: Seen, ratio: float) -> dict[str, float]:
        """Hold maps against the oracle's of the same ratio, and the boxes."""
        folder = self.place(arm)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / 'maps.npy', seen.maps)
        found = {}
        if seen.boxes:
            found['on_objects'] = on_objects(seen.maps, seen.boxes)
        try:
            theirs = self.oracle(arm.family, round(ratio, 2))
        except UserError as error:
            print(f'{arm.family}, no oracle at {ratio:.2f}: {error}')
            return found
        if arm.name == ERROR:
            np.save(folder / 'oracle.npy', theirs.maps)
        values = agreement(seen.maps, theirs.maps)
        return found | dict(
            agreement=values.mean(), agreement_std=values.std()
        )

    def _oracle(self, family: str, ratio: float) -> Seen:
        """The maps of true errors, on the static weights."""
        (arm,) = (a for a in arms_of(family) if a.name == ERROR)
        cfg, weights = self.prepare(arm)
        cfg.model.backbone.routing = 'oracle'
        model = launch.build_model(cfg, weights)
        images = load_images(cfg, model, PRICED)
        ratio_at = ratio_at_price(model.backbone, images)
        price, _ = find_price(ratio_at, ratio, tolerance=0.01)
        set_price(model.backbone, price)
        return look(cfg, model, self.num_images)

    def time(self, family: str, num_timed: int, repeats: int) -> None:
        """Time a family's arms in turns, image by image.

        Whole models, and their backbones alone.
        """
        runs = {}
        for arm in arms_of(family):
            if self.noted(arm, 'methods'):
                cfg, weights = self.prepare(arm)
                model = launch.build_model(cfg, weights)
                images = tested(cfg, model, num_timed)
                runs[arm.name, 'whole'] = partial(predict, model, images)
                part = partial(compute, model.backbone, images)
                runs[arm.name, 'backbone'] = part
        names = [name for name, part in runs if part == 'whole']
        timed = (self.rows.of(family, 'time', n, None, None) for n in names)
        if STATIC not in names or all(timed):
            return
        device = next(model.parameters()).device
        timing.interleave(runs, range(1), device)  # warms up
        times = timing.interleave(runs, range(repeats), device)
        ms = {
            key: 1e3 * np.array(timing.Quartiles.of(took)) / num_timed
            for key, took in times.items()
        }
        for name in names:
            lower, middle, upper = ms[name, 'whole']
            parts = dict(lower=lower, upper=upper)
            parts['backbone'] = ms[name, 'backbone'][1]
            for part, own in (
                ('whole', middle),
                ('backbone', parts['backbone']),
            ):
                parts[f'{part}_of_static'] = own / ms[STATIC, part][1]
            self.rows.add(
                [
                    self.row(family, 'time', name)
                    | dict(
                        metric='ms',
                        value=round(middle, 3),
                        metrics={k: round(v, 4) for k, v in parts.items()},
                        timed=[repeats, num_timed, torch.get_num_threads()],
                        device=timing.device_name(device),
                    )
                ]
            )


def tested(cfg: Config, model: nn.Module, number: int) -> list[dict]:
    """Some images as the model gets them, one by one."""
    loader = image_loader(cfg, number=number)
    return [model.data_preprocessor(data, False) for data in loader]


@torch.no_grad()
def predict(model: nn.Module, batches: list[dict]) -> None:
    """Run the whole model."""
    for batch in batches:
        model(**batch, mode='predict')


@torch.no_grad()
def compute(backbone: nn.Module, batches: list[dict]) -> None:
    """Run the backbone alone."""
    for batch in batches:
        backbone(batch['inputs'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('step', choices=('train', 'measure', 'time'))
    add('--families', nargs='+', choices=FAMILIES, default=list(FAMILIES))
    add('--arms', nargs='+', metavar='NAME', help='default: all')
    add('--work-dirs', type=Path, default=Path('work_dirs'))
    add('--rows', type=Path, default=ROWS)
    add('--num-images', type=positive, default=32, help='for maps')
    add('--num-timed', type=positive, default=8)
    add('--repeats', type=positive, default=15)
    add('--cfg-options', nargs='+', action=DictAction, help='for a trial')
    args = parser.parse_args()
    if args.cfg_options and args.rows.resolve() == ROWS.resolve():
        parser.error("--cfg-options: a trial's rows need a file: --rows PATH")
    rows = Rows(args.rows)
    bench = Bench(args.work_dirs, rows, args.num_images, args.cfg_options)
    arms = [
        arm
        for family in args.families
        for arm in arms_of(family)
        if not args.arms or arm.name in args.arms
    ]
    if args.step == 'time':
        for family in args.families:
            bench.time(family, args.num_timed, args.repeats)
            print(f'{family}: timed', flush=True)
        return
    for arm in sorted(arms, key=lambda arm: arm.weights != 'static'):
        label = f'{arm.family}: {arm.name}'
        try:
            if args.step == 'train':
                bench.train(arm.trained)
            elif not bench.noted(arm, 'methods'):
                bench.measure(arm)
                bench.note_training(arm.family, arm.trained)
                print(f'{label}: noted', flush=True)
        except UserError as error:
            print(f'{label}: left out, {error}', flush=True)


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
