"""How sure is a difference between two evaluations of the same images?

Where nothing is trained, there are no seeds. So the images are drawn again,
with replacement, the same for both (paired bootstrap: Efron and Tibshirani,
*An Introduction to the Bootstrap*, 1993, chapter 6).

Example::

    # of semantic segmentation: mmdge.EdgeIoU(out_file='one.npz')
    python projects/study/bootstrap.py one.npz other.npz
    # of detection: CocoMetric(outfile_prefix='one')
    python projects/study/bootstrap.py one.bbox.json other.bbox.json \
        --ann-file data/bccd/annotations/instances_val.json
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from mmdge.evaluation.edge_iou import iou
from mmdge.utils import UserError, launch
from mmdge.utils.arguments import positive
from mmdge.utils.tables import print_table

# A metric in points, of the images whose numbers it is given.
Metric = Callable[[np.ndarray], float]
SIZES = dict(AP='all', AP_s='small', AP_m='medium', AP_l='large')


def miou_of(areas: np.ndarray) -> Metric:
    """Mean IoU, from each image's areas ``(N, 3, K)``; see mmdge.EdgeIoU."""
    return lambda images: 100 * np.nanmean(iou(areas[images].sum(0)))


def ap_of(ann_file: Path, results: Path, size: str = 'all') -> Metric:
    """AP of boxes of a size: all, small, medium or large.

    Images have the numbers that their ids have in ascending order.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        truth = COCO(ann_file)
        found = COCOeval(truth, truth.loadRes(str(results)), 'bbox')
        options = found.params
        options.maxDets = [100]
        options.areaRng = [options.areaRng[options.areaRngLbl.index(size)]]
        found.evaluate()
    # Class by class, of each image.
    each = np.array(found.evalImgs, object).reshape(-1, len(options.imgIds))

    def ap(images: np.ndarray) -> float:
        found.evalImgs = each[:, images].ravel().tolist()
        with redirect_stdout(io.StringIO()):
            found.accumulate()
        precision = found.eval['precision']
        known = precision[precision > -1]  # of classes that are there
        return 100 * known.mean() if known.size else np.nan

    return ap


def compare(
    one: Metric, other: Metric, num_images: int, draws: int = 1000
) -> tuple[float, float, float]:
    """A metric of two evaluations of the same images.

    Args:
        one (Metric): Of the first.
        other (Metric): Of the second.
        num_images (int): That they have.
        draws (int): Of as many images. Defaults to 1000.

    Returns:
        tuple[float, float, float]: The metric of both, and the standard error
        of their difference.
    """
    drawn = np.random.default_rng(0).integers(
        num_images, size=(draws, num_images)
    )
    gaps = [one(images) - other(images) for images in drawn]
    whole = np.arange(num_images)
    # Without any small object there is no AP of them.
    return one(whole), other(whole), float(np.nanstd(gaps, ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('one', type=Path, help='what the first evaluation wrote')
    add('other', type=Path, help='what the second wrote')
    add('--ann-file', type=Path, help='of the images, for detection')
    add('--draws', type=positive, default=1000, help='default: 1000')
    args = parser.parse_args()
    files = args.one, args.other
    if args.ann_file:
        from pycocotools.coco import COCO

        with redirect_stdout(io.StringIO()):
            sizes = {len(COCO(args.ann_file).getImgIds())}
        pairs = {
            name: [ap_of(args.ann_file, path, size) for path in files]
            for name, size in SIZES.items()
        }
    else:
        areas = [np.load(path) for path in files]
        sizes = {len(each['all']) for each in areas}
        pairs = {
            name: [miou_of(each[key]) for each in areas]
            for name, key in dict(mIoU='all', mIoU_edges='edges').items()
        }
    if len(sizes) > 1:
        raise UserError(
            f'{files[0]} and {files[1]} are not of the same images'
        )
    (number,) = sizes
    found = {
        k: compare(*pair, number, args.draws) for k, pair in pairs.items()
    }
    print_table(
        f'{args.one} against {args.other}, {number} images',
        ('metric', 'one', 'other', 'difference', 'standard error'),
        [
            [k, *(f'{v:.2f}' for v in (a, b, a - b, error))]
            for k, (a, b, error) in found.items()
        ],
    )


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
