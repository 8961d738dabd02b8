"""Drawing one scene of *shapes*: where to compute is worth learning.

A scene is a large smooth background with a few small objects. The class
of an object is its filling pattern (rows, columns, checks or rings, bands
of 2.5 to 4 px); its outline and its colours say nothing about the class.
Averaging 16 x 16 px destroys the pattern and leaves a plain patch, which
looks just like a *distractor*: a plain shape that belongs to no class. So
objects need fine tokens, the background does not, and the number of
objects, hence the computation a scene deserves, varies between scenes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('rows', 'columns', 'checks', 'rings')
PALETTE = [(230, 75, 60), (60, 130, 220), (245, 185, 50), (70, 175, 110)]
SEM_CLASSES = ('background', *CLASSES)
SEM_PALETTE = [(40, 40, 40), *PALETTE]

# Raise it when the same parameters begin to give other files.
VERSION = 2

# Outline: (number of sides, inradius as a fraction of half the size). The
# fractions give the outlines about the same area. 0 sides make a disc.
_OUTLINES = ((0, 1.0), (4, 0.86), (6, 0.94))
_REACH = 1.22  # the largest circumradius over half the size (the square's)
_RIM = 1.5  # width in px of the dark rim around every shape


@dataclass(frozen=True)
class Scene:
    """One picture and all its labels; N objects, class indices from 0.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        boxes: float32 (N, 4), xyxy in px, tight around the masks; the
            right and lower edges are exclusive.
        labels: int64 (N,), indices into the classes drawn.
        masks: bool (N, H, W), the visible part of each object.
        semantic: uint8 (H, W), 0 for background, else ``label + 1``.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    semantic: np.ndarray


def draw_scene(
    rng: np.random.Generator,
    size: int = 256,
    num_objects: tuple[int, int] = (1, 8),
    object_size: tuple[float, float] = (24, 64),
    detail: tuple[float, float] = (2.5, 4.0),
    distractors: tuple[int, int] = (0, 2),
    tilt: float = 8.0,
    overlap: float = 0.1,
    classes: Sequence[str] = CLASSES,
) -> Scene:
    """Draw one scene.

    Args:
        rng: The only source of randomness.
        size: Height and width of the picture in px. Default: 256.
        num_objects: Fewest and most objects, drawn uniformly. A crowded
            picture may get fewer: an object without a place is left out,
            and so is one that stays visible on less than 25 % of its
            area or on less than 16 px. Default: (1, 8).
        object_size: Least and largest width of a shape in px.
            Default: (24, 64).
        detail: Least and largest width in px of one band of a pattern
            (half its period). Default: (2.5, 4.0).
        distractors: Fewest and most plain shapes of no class.
            Default: (0, 2).
        tilt: Shapes and patterns are turned by up to this many degrees
            either way. Default: 8.
        overlap: How far two shapes may reach into each other, as a
            fraction of the sum of their radii. Default: 0.1.
        classes: The patterns to draw, a choice of :data:`CLASSES`; labels
            are indices into it. Default: all of them.

    Returns:
        The scene, antialiased, with tight boxes and visible masks.

    Raises:
        ValueError: If a parameter is out of range.
    """
    for name, pair, least in (
        ('num_objects', num_objects, 0),
        ('object_size', object_size, 8),
        ('detail', detail, 1),
        ('distractors', distractors, 0),
    ):
        if len(pair) != 2 or not least <= pair[0] <= pair[1]:
            raise ValueError(
                f'{name} must be (low, high) with {least} <= low <= high, '
                f'got {pair}'
            )
    for name, value, most in (('tilt', tilt, 180), ('overlap', overlap, 1)):
        if not 0 <= value <= most:
            raise ValueError(f'{name} must be in [0, {most}], got {value}')
    if size < object_size[1] * _REACH:
        raise ValueError(
            f'size must be at least {_REACH} x the largest object_size '
            f'({object_size[1]}), got {size}'
        )
    if not 0 < len(set(classes) & set(CLASSES)) == len(classes):
        raise ValueError(
            f'classes must be different names out of {CLASSES}, '
            f'got {tuple(classes)}'
        )
    image = _draw_background(rng, size)
    # Which shape is seen at a pixel: -1 for background.
    owner = np.full((size, size), -1, np.int16)
    areas, kinds = [], []
    placed = np.empty((0, 3))  # x, y, radius
    count = rng.integers(num_objects[0], num_objects[1] + 1)
    plain = rng.integers(distractors[0], distractors[1] + 1)
    todo = np.concatenate(
        [rng.integers(len(classes), size=count), np.full(plain, -1)]
    )
    for label in rng.permutation(todo):
        width = rng.uniform(*object_size)
        place = _find_place(rng, placed, width / 2, size, overlap)
        if place is None:
            continue
        placed = np.vstack([placed, place])
        pattern = None if label < 0 else classes[label]
        band = rng.uniform(*detail)
        inside = _draw_shape(rng, image, place, pattern, band, tilt)
        owner[inside] = len(kinds)
        areas.append(np.count_nonzero(inside))
        kinds.append(label)
    seen = np.bincount(owner[owner >= 0], minlength=len(kinds))
    keep = [
        i
        for i, kind in enumerate(kinds)
        if kind >= 0 and seen[i] >= max(16, 0.25 * areas[i])
    ]
    labels = np.array([kinds[i] for i in keep], np.int64)
    masks = owner[None] == np.array(keep, np.int16)[:, None, None]
    return Scene(
        image=np.clip(image + 0.5, 0, 255).astype(np.uint8),
        boxes=_tight_boxes(masks),
        labels=labels,
        masks=masks,
        # They don't meet: each pixel is of one of them, or of none.
        semantic=np.tensordot(labels + 1, masks, 1).astype(np.uint8),
    )


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return an RGB colour, float32 (3,) in [0, 255], from HSV in [0, 1]."""
    rgb = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return np.array(rgb, np.float32) * 255


def _draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a muted, smooth picture, float32 (size, size, 3)."""
    base = _colour(
        rng.random(), rng.uniform(0.08, 0.3), rng.uniform(0.55, 0.85)
    )
    # 4 x 4 colours: a gradient plus soft blobs, blown up to the full size.
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, 4)
    ramp = ramp[None] * np.cos(angle) + ramp[:, None] * np.sin(angle)
    grid = base + 20 * ramp[..., None] + rng.normal(0, 5, (4, 4, 3))
    return cv2.resize(
        grid.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )


def _find_place(
    rng: np.random.Generator,
    placed: np.ndarray,
    radius: float,
    size: int,
    overlap: float,
) -> np.ndarray | None:
    """Return (x, y, radius) away from the shapes placed, None if full."""
    reach = radius * _REACH
    for xy in rng.uniform(reach, size - reach, (30, 2)):
        gaps = np.hypot(*(placed[:, :2] - xy).T)
        if (gaps >= (1 - overlap) * (placed[:, 2] + radius)).all():
            return np.array([*xy, radius])
    return None


def _draw_shape(
    rng: np.random.Generator,
    image: np.ndarray,
    place: np.ndarray,
    pattern: str | None,
    band: float,
    tilt: float,
) -> np.ndarray:
    """Draw one shape into ``image`` and return its mask, bool (H, W)."""
    cx, cy, radius = place
    size = len(image)
    reach = radius * _REACH + 1
    x0, y0 = (max(int(c - reach), 0) for c in (cx, cy))
    x1, y1 = (min(int(c + reach) + 2, size) for c in (cx, cy))
    # Pixel centres relative to the shape, turned by its angle.
    dx = np.arange(x0, x1, dtype=np.float32)[None] + np.float32(0.5 - cx)
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
    cos, sin = _direction(np.deg2rad(rng.uniform(-tilt, tilt)))
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    sides, fraction = _OUTLINES[rng.integers(len(_OUTLINES))]
    depth = _depth(x, y, sides, np.float32(radius * fraction))

    # Dark and light of about the same hue: strong contrast within, and a
    # mean that differs from the pale background but not between classes.
    hue = rng.random()
    dark = _colour(hue, rng.uniform(0.7, 1), rng.uniform(0.25, 0.4))
    light = _colour(
        hue + rng.uniform(-0.12, 0.12),
        rng.uniform(0.25, 0.6),
        rng.uniform(0.95, 1),
    )
    phase = rng.uniform(0, 2 * band, 2).astype(np.float32)
    if pattern is None:
        # What remains of a pattern once it has been averaged.
        mix = np.full_like(depth, rng.uniform(0.35, 0.65))
    else:
        mix = _pattern(pattern, x, y, np.float32(band), phase)
    mix = np.minimum(mix, np.clip(depth - _RIM + 0.5, 0, 1))
    paint = dark + mix[..., None] * (light - dark)
    # The distance to the edge in px is the share of the pixel covered.
    alpha = np.clip(depth + 0.5, 0, 1)[..., None]
    patch = image[y0:y1, x0:x1]
    patch += alpha * (paint - patch)
    inside = np.zeros((size, size), bool)
    inside[y0:y1, x0:x1] = depth >= 0
    return inside


def _direction(angle: float) -> np.ndarray:
    """Return (cos, sin) of an angle in radians, float32 (2,)."""
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def _depth(
    x: np.ndarray, y: np.ndarray, sides: int, inradius: float
) -> np.ndarray:
    """Return how deep in px a point lies inside a disc or a polygon."""
    if sides == 0:
        return inradius - np.hypot(x, y)
    depth = np.full_like(x, np.inf)
    for k in range(sides):
        nx, ny = _direction(2 * np.pi * k / sides)
        np.minimum(depth, inradius - nx * x - ny * y, out=depth)
    return depth


def _pattern(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    band: float,
    phase: np.ndarray,
) -> np.ndarray:
    """Return how light a pattern is at each point, float32 in [0, 1].

    Each branch finds the distance in px to the next edge of the pattern,
    positive where it is light, and the last line antialiases that edge.
    """
    if name == 'rows':
        edge = _bands(y, band, phase[0])
    elif name == 'columns':
        edge = _bands(x, band, phase[0])
    elif name == 'checks':
        u, v = _bands(x, band, phase[0]), _bands(y, band, phase[1])
        edge = np.minimum(abs(u), abs(v)) * np.sign(u * v)
    else:
        edge = _bands(np.hypot(x, y), band, phase[0])
    return np.clip(edge + 0.5, 0, 1)


def _bands(u: np.ndarray, band: float, phase: float) -> np.ndarray:
    """Return the signed distance to the edges of alternating bands."""
    return band / 2 - abs((u + phase) % (2 * band) - band)


def _tight_boxes(masks: np.ndarray) -> np.ndarray:
    """Return the boxes xyxy, float32 (N, 4), of masks, bool (N, H, W)."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes
