"""The procedural data set *shapes* as files.

:func:`write_shapes` draws the scenes of :mod:`mmdge.datasets.scenes` and
lays them out for the readers of the hosts::

    root/
      train/shapes_000000.jpg ...             images, RGB
      val/shapes_000000.jpg ...
      annotations/instances_train.json        COCO, masks as RLE
      annotations/instances_val.json
      semantic/train/shapes_000000.png ...    uint8 maps
      semantic/val/shapes_000000.png ...
      crops/train/rows/shapes_000000_0.jpg ...  one object each, RGB
      crops/val/rows/shapes_000000_0.jpg ...
      shapes.json                             parameters, written last

In the semantic maps 0 is the background (distractors included) and
``label + 1`` is a pattern; every pixel has a valid class. A crop is a square
of :data:`CROP_SIZE` px around one object, in the folder of its class.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmdge.errors import UserError

from .scenes import VERSION, draw_scene

MANIFEST = 'shapes.json'
SPLITS = ('train', 'val')
CROP_SIZE = 96

# The drawing parameters and their defaults: all of draw_scene's but rng.
_LOOK = {
    name: parameter.default
    for name, parameter in inspect.signature(draw_scene).parameters.items()
    if name != 'rng'
}


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of one scene, however many scenes are drawn."""
    key = (SPLITS.index(split), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def write_shapes(
    root: str | os.PathLike,
    num_train: int = 900,
    num_val: int = 100,
    size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    **look: Any,
) -> bool:
    """Draw the data set below a folder, once.

    The manifest ``shapes.json`` is written last. Where it is found with
    the same parameters nothing is drawn; drawing that was interrupted
    leaves none and is done again. See the module for the layout. Two
    processes must not draw into the same folder at the same time.

    Args:
        root: Folder to write to; made if it is missing.
        num_train: Training scenes.
        num_val: Validation scenes.
        size: Height and width of the pictures in px.
        seed: Of the data set, 0 or more.
        overwrite: Draw again over a data set already there.
        progress: Wraps the indices of the scenes of a split, for example
            ``mmengine.track_iter_progress``.
        look: Other parameters of :func:`draw_scene`, such as ``detail``.

    Returns:
        True if the data set was drawn, False if it was there already.

    Raises:
        ValueError: As :func:`draw_scene`, or if the seed is negative.
        TypeError: If there is no such parameter.
        UserError: If ``root`` holds a data set drawn with other parameters
            and not ``overwrite``.
    """
    look = {**_LOOK, 'size': size, **look}
    # Refuses what is out of range, while the folder is still untouched.
    draw_scene(scene_rng(seed, 'train', 0), **look)
    root = Path(root)
    manifest = root / MANIFEST
    numbers = dict(num_train=num_train, num_val=num_val, seed=seed)
    params = dict(version=VERSION, **numbers, **look)
    params = json.loads(json.dumps(params))  # tuples as they are read back
    if manifest.exists() and not overwrite:
        found = json.loads(manifest.read_text())
        differ = ', '.join(
            f'{name} is {found.get(name)}, wanted {params[name]}'
            for name in params
            if found.get(name) != params[name]
        )
        if differ:
            raise UserError(
                f'{root} holds shapes drawn with other parameters ({differ}); '
                'choose another root, or draw again with overwrite=True '
                '(--overwrite)'
            )
        return False
    # From here on and until the end the folder is not a data set.
    manifest.unlink(missing_ok=True)
    for split, count in zip(SPLITS, (num_train, num_val), strict=True):
        _write_split(root, split, count, seed, look, progress)
    # A rename is atomic: a manifest is whole or not there.
    part = manifest.with_suffix('.part')
    part.write_text(json.dumps(params, indent=2) + '\n')
    part.replace(manifest)
    return True


def _write_split(
    root: Path,
    split: str,
    count: int,
    seed: int,
    look: dict[str, Any],
    progress: Callable[[Sequence[int]], Iterable[int]],
) -> None:
    """Write images, semantic maps and COCO file of one split."""
    from pycocotools import mask as rle_api  # only drawing needs it

    images, maps = root / split, root / 'semantic' / split
    crops = [root / 'crops' / split / name for name in look['classes']]
    for folder in (images, maps, *crops):
        folder.mkdir(parents=True, exist_ok=True)
        # Scenes of an earlier, larger drawing; no other file is touched.
        kind = 'png' if folder == maps else 'jpg'
        for old in folder.glob(f'shapes_*.{kind}'):
            old.unlink()
    size, pictures, annotations = look['size'], [], []
    for i in progress(range(count)):
        scene = draw_scene(scene_rng(seed, split, i), **look)
        stem = f'shapes_{i:06d}'
        image = scene.image[..., ::-1]
        _write_image(images / f'{stem}.jpg', image)
        _write_image(maps / f'{stem}.png', scene.semantic)
        pictures.append(
            dict(id=i + 1, file_name=f'{stem}.jpg', height=size, width=size)
        )
        for number, box in enumerate(scene.boxes.tolist()):
            label, mask = int(scene.labels[number]), scene.masks[number]
            path = crops[label] / f'{stem}_{number}.jpg'
            _write_image(path, _crop(image, box))
            rle = rle_api.encode(np.asfortranarray(mask, np.uint8))
            rle['counts'] = rle['counts'].decode()
            left, top, right, bottom = box
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=label + 1,
                    bbox=[left, top, right - left, bottom - top],
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=rle,
                )
            )
    categories = [
        dict(id=i, name=name, supercategory='shape')
        for i, name in enumerate(look['classes'], 1)
    ]
    coco = dict(
        info=dict(description='mmdge shapes', version=str(VERSION)),
        licenses=[],
        categories=categories,
        images=pictures,
        annotations=annotations,
    )
    path = root / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco))


def _crop(image: np.ndarray, box: list[float]) -> np.ndarray:
    """Cut the square around the middle of a box out of an image."""
    left, top, right, bottom = box
    corner = [
        int(np.clip((low + high - CROP_SIZE) / 2, 0, max(0, end - CROP_SIZE)))
        for low, high, end in zip(
            (top, left), (bottom, right), image.shape[:2], strict=True
        )
    ]
    rows, columns = (slice(low, low + CROP_SIZE) for low in corner)
    return image[rows, columns]


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write one image, BGR or grey; a full disk raises an OSError."""
    # JPEG decodes fastest; without chroma subsampling, which would blur
    # the colours of the patterns, it loses nothing visible at 95.
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options = options if path.suffix == '.jpg' else []
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())
