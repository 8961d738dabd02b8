"""Lay BCCD out as COCO is, for projects/study.

Nothing is downloaded; the source is a folder of the published repository::

    git clone https://github.com/Shenggan/BCCD_Dataset
    python projects/study/bccd.py BCCD_Dataset/BCCD

Its trainval becomes the training set, its test the validation set.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from mmdge.datasets.staging import progress, read_image, whole_folder
from mmdge.utils import UserError, launch

CATEGORIES = dict(RBC=1, WBC=2, Platelets=3)
SPLITS = dict(train='trainval', val='test')
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('source', type=Path, help='the folder with JPEGImages, ...')
    add('--root', default='data/bccd', help='folder to write to')
    add(
        '--overwrite',
        action='store_true',
        help='write again over a data set already there',
    )
    return parser.parse_args()


def names_of(source: Path, part: str) -> list[str]:
    """Read the names of the images of a part."""
    path = source / 'ImageSets' / 'Main' / f'{part}.txt'
    names = path.read_text().split() if path.is_file() else []
    if not names:
        raise UserError(
            f'{path} is missing or empty; name the folder BCCD of '
            'github.com/Shenggan/BCCD_Dataset'
        )
    return names


def read_boxes(path: Path) -> list[tuple[int, list[float]]]:
    """Read the category and the corners of each cell of an image."""
    boxes = []
    try:
        for cell in ElementTree.parse(path).iter('object'):
            category = CATEGORIES[cell.findtext('name')]
            corners = [cell.findtext(f'bndbox/{side}') for side in SIDES]
            boxes.append((category, [float(corner) for corner in corners]))
    # No file, no XML; another class; a corner that is no number; none.
    except (OSError, SyntaxError, KeyError, ValueError, TypeError) as err:
        raise UserError(
            f'{path} cannot be read as boxes of {", ".join(CATEGORIES)} in '
            f'the format of Pascal VOC ({err}); get the data set again'
        ) from err
    return boxes


def add_image(coco: dict, image: Path, annotations: Path) -> int:
    """Describe one image; return how many of its boxes are left out."""
    height, width = read_image(image).shape[:2]
    image_id = len(coco['images']) + 1
    coco['images'].append(
        dict(id=image_id, file_name=image.name, height=height, width=width)
    )
    left_out = 0
    # The corners stay as published; VOC's counting from 1 is one pixel.
    for category, (left, top, right, bottom) in read_boxes(annotations):
        size = right - left, bottom - top
        if min(size) <= 0:
            left_out += 1
            continue
        coco['annotations'].append(
            dict(
                id=len(coco['annotations']) + 1,
                image_id=image_id,
                category_id=category,
                bbox=[left, top, *size],
                area=size[0] * size[1],
                iscrowd=0,
            )
        )
    return left_out


def write_split(
    source: Path,
    names: list[str],
    root: Path,
    split: str,
    step: Callable[[], None],
) -> str:
    """Write one split; say what it holds."""
    (root / split).mkdir()
    coco = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i, name=name) for name, i in CATEGORIES.items()],
    )
    left_out = 0
    for name in names:
        image = source / 'JPEGImages' / f'{name}.jpg'
        annotations = source / 'Annotations' / f'{name}.xml'
        left_out += add_image(coco, image, annotations)
        shutil.copyfile(image, root / split / image.name)
        step()
    path = root / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco))
    boxes = len(coco['annotations'])
    return (
        f'{split}: {len(names)} images, {boxes} boxes '
        f'({left_out} without an area left out)'
    )


def main() -> None:
    args = parse_args()
    names = {to: names_of(args.source, part) for to, part in SPLITS.items()}
    contents = (*SPLITS, 'annotations')
    with (
        whole_folder(args.root, contents, args.overwrite) as folder,
        progress(sum(map(len, names.values()))) as step,
    ):
        said = [
            write_split(args.source, names[split], folder, split, step)
            for split in SPLITS
        ]
    print(*said, f'wrote {args.root}', sep='\n')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
