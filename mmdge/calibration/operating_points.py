"""Operating points: input scale, method and price of one checkpoint."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from mmdge.datasets import plain_datasets
from mmdge.models.routing.router import STATIC
from mmdge.utils import UserError, checks

COSTS = ('GFLOPs', 'ms')  # of the whole model, per image
SPENT = 'backbone/GFLOPs'
UNTIMED = dict.fromkeys(('lower', 'median', 'upper'), math.nan)
MET = 0.1  # how near milliseconds that were searched for are met

Key = tuple[float, str, float | None]  # scale, method, ratio asked for
# A key's entries, its ``metrics``, ``value`` (the metric that counts, in
# points of 100), ``model_GFLOPs``, ``seconds``; and if it is a ``control``.
Point = dict[str, Any]

# Transforms that resize an image, and what else follows its size; with their
# entries that are a size in pixels.
_RESIZING = {
    'Resize': ('scale',),
    'FixScaleResize': ('scale',),
    'FixShapeResize': ('width', 'height'),
    'ResizeShortestEdge': ('scale', 'max_size'),
    'ResizeEdge': ('scale',),
    'EfficientNetCenterCrop': ('crop_size',),
}
_SIZED = {**_RESIZING, 'CenterCrop': ('crop_size',), 'Pad': ('size',)}
_MULTIPLE = 'ResizeToMultiple'  # the host's own rounding
# mmdet's metrics are parts of 1, but for panoptic ones; the others' of 100.
_PER_CENT = re.compile(r'panoptic|/[PSR]Q')


def scale_pipeline(
    pipeline: Sequence[Mapping], factor: float, stride: int = 1
) -> list[Mapping]:
    """Make the pipeline of a test resize its images to another size.

    A size that is a multiple of ``stride`` becomes the nearest other one,
    any other the nearest integer. A pipeline that doesn't resize gets a
    ``Resize`` after its first transform, which loads the image.

    Args:
        pipeline (Sequence[dict]): Configs of transforms, which stay.
        factor (float): Of height and width.
        stride (int): Pixels per token of the coarsest map. Defaults to 1.

    Raises:
        UserError: If it augments, or resizes in a way that is not known.
    """
    if factor == 1:
        return list(pipeline)

    def resized(size: Any) -> Any:
        if isinstance(size, (list, tuple)):
            return type(size)(map(resized, size))
        # -1, infinity or None mean that there is no bound.
        if not isinstance(size, (int, float)) or not 0 < size < math.inf:
            return size
        unit = 1 if size % stride else stride
        return max(1, round(size * factor / unit)) * unit

    scaled, resizes = [], False
    for transform in pipeline:
        name = checks.type_name(transform)
        unknown = 'Resize' in name and name not in (*_SIZED, _MULTIPLE)
        if unknown or 'transforms' in transform:
            raise UserError(
                f'the test pipeline has a {name}, for which there is no '
                'scaled form: augmented and multi-scale tests have no scale '
                'of their own; test with a single plain Resize'
            )
        resizes |= name in _RESIZING
        changed = {
            key: resized(transform[key])
            for key in _SIZED.get(name, ())
            if key in transform
        }
        if name == 'Resize' and transform.get('scale_factor') is not None:
            factors = transform['scale_factor']
            changed['scale_factor'] = (
                factor * factors
                if isinstance(factors, (int, float))
                else tuple(factor * part for part in factors)
            )
        scaled.append({**transform, **changed})
    if not resizes:
        resize = dict(type='Resize', scale_factor=factor, keep_ratio=True)
        scaled.insert(1, resize)
    return scaled


def scale_config(cfg: Config, factor: float, stride: int = 1) -> Config:
    """A copy of a config that validates and tests at another size.

    Args:
        cfg (Config): With a ``test_dataloader``.
        factor (float): See :func:`scale_pipeline`.
        stride (int): See there. Defaults to 1.
    """
    cfg = copy.deepcopy(cfg)
    # Where both loaders are one, their data sets are.
    parts = {
        id(part): part
        for split in ('test', 'val')
        for part in plain_datasets(
            (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
        )
        if 'pipeline' in part
    }
    for part in parts.values():
        part['pipeline'] = scale_pipeline(part['pipeline'], factor, stride)
    return cfg


def points_of_100(name: str, host: str | None) -> float:
    """What a metric is multiplied by to be in points of 100.

    Args:
        name (str): E.g. ``'coco/bbox_mAP'``.
        host (str, optional): Whose it is, e.g. ``'mmdet'``.
    """
    return 100.0 if host == 'mmdet' and not _PER_CENT.search(name) else 1.0


def pareto_front(
    costs: Sequence[float], values: Sequence[float]
) -> list[bool]:
    """Which points no other is better than: as cheap, as good, not both equal.

    Args:
        costs (Sequence[float]): The lower, the better; NaN is never on it.
        values (Sequence[float]): The higher, the better.
    """
    pairs = list(zip(costs, values, strict=True))
    return [
        not math.isnan(cost)
        and not any(
            c <= cost and v >= value and (c, v) != (cost, value)
            for c, v in pairs
        )
        for cost, value in pairs
    ]


def ratio_for_time(times: Mapping[float, float], wanted: float) -> float:
    """The ratio at which a time is to be expected.

    Args:
        times (Mapping[float, float]): Measured time by ratio, at least two.
        wanted (float): At most the longest; one below the shortest is looked
            for along the line through the ends, at half of the ratio or more.
    """
    ratios = sorted(times)
    # Noise may turn neighbours round; time rises with the ratio.
    rising = np.maximum.accumulate([times[ratio] for ratio in ratios])
    if wanted >= rising[0]:
        return float(np.interp(wanted, rising, ratios))
    slope = (ratios[-1] - ratios[0]) / max(rising[-1] - rising[0], 1e-9)
    below = ratios[0] - slope * (rising[0] - wanted)
    return float(max(below, ratios[0] / 2))


def share_weights(backbone: nn.Module) -> nn.Module:
    """A copy with routers of its own state, but the same parameters."""
    memo = {id(parameter): parameter for parameter in backbone.parameters()}
    return copy.deepcopy(backbone, memo)


def set_routing(backbone: dict, routing: str) -> None:
    """Change the routing in a backbone's config, and what belongs to it.

    The price goes, and of a list of routings the static ones stay.
    """
    backbone.pop('price', None)
    own = backbone.get('routing')
    backbone['routing'] = routing
    if isinstance(own, (list, tuple)) and routing not in STATIC:
        backbone['routing'] = [r if r in STATIC else routing for r in own]


def key_of(point: Point) -> Key:
    """What tells a point from others."""
    return point['scale'], point['method'], point['ratio_asked']


def describe(point: Point) -> str:
    """Scale, method and ratio in words."""
    scale, method, asked = key_of(point)
    return f'scale {scale:g} {method}' + (f' {asked:g}' if asked else '')


def spread(point: Point, name: str) -> list[float]:
    """Low, middle and high of one cost.

    Args:
        point (Point): See there.
        name (str): ``'ms'``: quartiles, NaN if it was not timed; mean and 5th
            and 95th percentile of the images: ``'GFLOPs'``, or those of the
            ``'backbone'``.
    """
    if name == 'ms':
        return [1e3 * s for s in (point.get('seconds') or UNTIMED).values()]
    spent = [point['metrics'][SPENT + end] for end in ('_p5', '', '_p95')]
    rest = point['model_GFLOPs'] - spent[1] if name == 'GFLOPs' else 0
    return [rest + part for part in spent]


def cost(point: Point, name: str) -> float:
    """The middle of :func:`spread`."""
    return spread(point, name)[1]


def figures(point: Point) -> str:
    """What a point gives and costs, in words."""
    flops, ms = (cost(point, name) for name in COSTS)
    return f'{point["value"]:.2f} at {flops:.4g} GFLOPs and {ms:.4g} ms'


def choosable(points: Sequence[Point]) -> list[Point]:
    """The points that are no controls."""
    return [point for point in points if not point['control']]


def mark_fronts(points: Sequence[Point]) -> list[str]:
    """Mark the points that no other beats, as ``front_GFLOPs``, ``front_ms``.

    Controls are left out.

    Returns:
        list[str]: What that says of a smaller input, in sentences.
    """
    said, points = [], choosable(points)
    values = [point['value'] for point in points]
    for name in COSTS:
        front = pareto_front([cost(p, name) for p in points], values)
        for point, on_front in zip(points, front, strict=True):
            point[f'front_{name}'] = on_front
        best = [p for p in points if p[f'front_{name}']]
        dense = [p for p in best if p['method'] == 'dense']
        small = [describe(p) for p in dense if p['scale'] < 1]
        if small:
            said.append(
                f'A smaller input alone is on the front of {name}: '
                f'{", ".join(small)}.'
            )
        dynamic = any(p['method'] != 'dense' for p in points)
        if best and dynamic and len(dense) == len(best):
            said.append(
                f'No dynamic point is on the front of {name}: the dense model '
                'at some scale is as good as each, and no dearer.'
            )
    return said


def choose(
    points: Sequence[Point],
    full: Point | None,
    drop: float | None = None,
    ms: float | None = None,
    ratio: float | None = None,
    by: str = 'ms',
) -> Point:
    """Choose by one of three targets.

    Args:
        points (Sequence[Point]): Without their controls.
        full (Point, optional): The dense model at scale 1; not for ``ms``.
        drop (float, optional): The cheapest point that is at most so far
            below ``full``, in points of 100, and cheaper.
        ms (float, optional): The best point that takes at most so long, or,
            where a price was searched for that does, a tenth longer.
        ratio (float, optional): The best point whose backbone spends at most
            so much of that of ``full``, or as much as those do that were
            calibrated for this at its scale.
        by (str): What is cheap, one of ``COSTS``. Defaults to ``'ms'``.

    Raises:
        UserError: If there is none; which is the nearest.
    """
    points = choosable(points)
    if ms is not None:
        what = f'takes at most {ms:g} ms'
        most = [ms * (1 + MET * (p.get('ms_asked') == ms)) for p in points]
        misses = [cost(p, 'ms') for p in points]
        misses = np.subtract(misses, most)
    elif drop is not None:
        what = f'cheaper than the dense model drops by at most {drop:g}'
        points = [p for p in points if cost(p, by) < cost(full, by)]
        misses = [full['value'] - p['value'] - drop for p in points]
    else:
        what = f'spends at most {ratio:g} of the dense FLOPs at scale 1'
        alike = full['scale'], ratio
        spent = [p['metrics'][SPENT] for p in points]
        own = [p for p in points if (p['scale'], p['ratio_asked']) == alike]
        own = [p['metrics'][SPENT] for p in own]
        misses = np.subtract(
            spent, max([ratio * full['metrics'][SPENT], *own])
        )
    fit = [p for p, m in zip(points, misses, strict=True) if m <= 1e-9]
    if not fit:
        near = points[np.argmin(misses)] if points else full
        nearest = 'nothing but controls was measured'
        if near is not None:
            nearest = f'the nearest is {describe(near)}, {figures(near)}'
        raise UserError(f'no point {what}; {nearest}')
    if drop is not None:
        return min(fit, key=lambda p: cost(p, by))
    return max(fit, key=lambda p: (p['value'], -cost(p, by)))
