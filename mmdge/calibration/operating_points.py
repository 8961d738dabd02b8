"""Operating points: input scale, method and price of one checkpoint."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from mmdge.datasets import plain_datasets
from mmdge.models.routing.router import STATIC
from mmdge.utils import UserError, checks

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
COSTS = ('GFLOPs', 'ms')  # of the whole model, per image
SPENT = 'backbone/GFLOPs'
UNTIMED = dict.fromkeys(('lower', 'median', 'upper'), math.nan)
_MET, _TOLERANCE = 0.1, 0.02  # of milliseconds asked for; of ratios

Key = tuple[float, str, float | None]  # scale, method, ratio asked for
# Of a key, its metrics, ``value`` (the metric that counts, in points of 100),
# ``model_GFLOPs`` and ``seconds``, as operating_points.py writes them.
Point = dict[str, Any]
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
        costs (Sequence[float]): The lower, the better.
        values (Sequence[float]): The higher, the better; NaN is never on the
            front, neither as a cost.
    """
    pairs = list(zip(costs, values, strict=True))
    return [
        not (math.isnan(cost) or math.isnan(value))
        and not any(
            c <= cost and v >= value and (c, v) != (cost, value)
            for c, v in pairs
        )
        for cost, value in pairs
    ]


def ratio_for_time(times: Mapping[float, float], wanted: float) -> float:
    """The ratio at which a time is to be expected, between two measured ones.

    Args:
        times (Mapping[float, float]): Measured time by ratio, at least two.
        wanted (float): Among them.
    """
    ratios = sorted(times)
    # Noise may turn neighbours round; time rises with the ratio.
    rising = np.maximum.accumulate([times[ratio] for ratio in ratios])
    return float(np.interp(wanted, rising, ratios))


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


def cheapest_within(
    points: Sequence[Point], full: Point, drop: float, name: str
) -> Point:
    """The cheapest point at most ``drop`` points of 100 below another.

    Args:
        points (Sequence[Point]): To choose from.
        full (Point): That they must be cheaper than.
        drop (float): In points of 100.
        name (str): One of ``COSTS``.

    Raises:
        UserError: If there is none; which is the nearest.
    """
    return _choose(
        [p for p in points if cost(p, name) < cost(full, name)] or [full],
        lambda p: math.inf if p is full else full['value'] - p['value'] - drop,
        lambda p: -cost(p, name),
        f'cheaper than the dense model drops by at most {drop:g}',
    )


def best_within_ms(points: Sequence[Point], most: float) -> Point:
    """The best point that takes at most so many milliseconds.

    One whose price was searched for may take a tenth more.
    """
    return _choose(
        points,
        lambda p: (
            cost(p, 'ms') - most * (1 + _MET * (p.get('ms_asked') == most))
        ),
        lambda p: p['value'],
        f'takes at most {most:g} ms',
    )


def best_within_ratio(
    points: Sequence[Point], full: Point, ratio: float
) -> Point:
    """The best point whose backbone spends at most so much of another's."""
    most = (ratio + _TOLERANCE) * full['metrics'][SPENT]
    return _choose(
        points,
        lambda p: p['metrics'][SPENT] - most,
        lambda p: p['value'],
        f'spends at most {ratio:g} of the dense FLOPs at scale 1',
    )


def _choose(
    points: Sequence[Point],
    miss: Callable[[Point], float],
    rank: Callable[[Point], float],
    what: str,
) -> Point:
    """Of the points without a miss the first by rank."""
    points = choosable(points)
    fit = [point for point in points if miss(point) <= 1e-9]
    if fit:
        return max(fit, key=rank)
    near = min(points, key=miss)
    raise UserError(
        f'no point {what}; the nearest, {describe(near)}, has '
        f'{near["value"]:.4g} at {cost(near, "GFLOPs"):.4g} GFLOPs and '
        f'{cost(near, "ms"):.4g} ms'
    )
