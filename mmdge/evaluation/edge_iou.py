"""IoU where resolution counts: near edges, and of thin classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmdge.registry import METRICS
from mmdge.utils import UserError, is_number
from mmdge.utils.checks import check_output

INFINITE = float('inf')


@METRICS.register_module()
class EdgeIoU(BaseMetric):
    """Mean IoU near the edges between classes, and IoU of thin classes.

    For semantic segmentation, beside the host's ``IoUMetric``: what a coarse
    computation loses, the mean over all pixels hardly shows. An edge is where
    two neighbouring pixels, left and right or above and below, have different
    labels; a pixel is near one if the nearest pixel at an edge is at most
    ``width - 1`` away from it, so with 3, the default, edges have 3 pixels on
    either side. Trimaps as in Krähenbühl and Koltun, NeurIPS 2011, section 5.

    Unit: percent, rounded as ``IoUMetric`` does. Keys: ``mIoU_edges``, and
    with ``thin`` the ``IoU_<class>`` of each over all pixels, and their mean
    ``mIoU_thin``. A class that no pixel has, labelled or predicted, is NaN,
    and no part of a mean.

    Args:
        width (float): In pixels of the labels, at least 1; with infinity
            ``mIoU_edges`` is the plain mIoU. Defaults to 3.
        thin (Sequence[str]): Names of classes. Defaults to none.
        ignore_index (int): Label of pixels that have none; neither counted,
            nor at an edge. Defaults to 255.
        out_file (str | Path, optional): A NumPy file (``.npz``) with each
            image's areas, so that evaluations of the same images can be
            compared image by image: ``all`` and ``edges``, each
            ``(N, 3, K)``: pixels of the intersection, the prediction and the
            label. Each evaluation writes it anew. Defaults to None.
        **kwargs: Those of :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        UserError: If the width is none, there is no such class, or no folder
            for ``out_file``.
    """

    def __init__(
        self,
        width: float = 3,
        thin: Sequence[str] = (),
        ignore_index: int = 255,
        out_file: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (is_number(width) or width == INFINITE) or width < 1:
            raise UserError(
                'width, in pixels on either side of an edge, must be a number '
                f'of at least 1, but got {width!r}.'
            )
        # Only the first rank writes, maybe where other nodes have no folder.
        if out_file is not None and is_main_process():
            check_output(out_file, 'out_file')
        self.width = width
        self.thin = thin
        self.ignore_index = ignore_index
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each image, all of them and those near edges."""
        names = self.dataset_meta['classes']
        if unknown := set(self.thin) - set(names):
            raise UserError(
                f'thin has the classes {sorted(unknown)}, but there are '
                f'{list(names)}.'
            )
        for sample in data_samples:
            labels = sample['gt_sem_seg']['data'].squeeze(0).cpu()
            found = sample['pred_sem_seg']['data'].squeeze(0).cpu()
            labelled = labels != self.ignore_index
            near = near_edges(labels, self.width, self.ignore_index)
            self.results.append(
                [
                    areas(found[mask], labels[mask], len(names))
                    for mask in (labelled, labelled & near)
                ]
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Sum up the images of all ranks."""
        whole, edges = np.array(results).swapaxes(0, 1)  # (N, 3, K) each
        if self.out_file is not None:
            np.savez_compressed(self.out_file, all=whole, edges=edges)
        ious = iou(whole.sum(0))
        names = list(self.dataset_meta['classes'])
        thin = {f'IoU_{n}': ious[names.index(n)] for n in self.thin}
        found = {'mIoU_edges': mean(iou(edges.sum(0))), **thin}
        if thin:
            found['mIoU_thin'] = mean(list(thin.values()))
        return {key: round(float(v) * 100, 2) for key, v in found.items()}


def near_edges(labels: Tensor, width: float, ignore_index: int) -> Tensor:
    """Which pixels are near an edge between classes.

    Args:
        labels (Tensor): Classes ``(H, W)``, integers, on the CPU.
        width (float): See :class:`EdgeIoU`.
        ignore_index (int): Likewise.

    Returns:
        Tensor: ``(H, W)``, bool.
    """
    edges = edge_pixels(labels, ignore_index, both_sides=True)
    if not edges.any():
        return torch.full_like(edges, width == INFINITE)
    distances = cv2.distanceTransform(
        (~edges).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return torch.from_numpy(distances <= width - 1)


def edge_pixels(
    labels: Tensor, ignore_index: int, both_sides: bool = False
) -> Tensor:
    """Which labelled pixels have a labelled neighbour of another class.

    Args:
        labels (Tensor): Classes ``(H, W)``, integers.
        ignore_index (int): Label of pixels that have none.
        both_sides (bool): Whether all four neighbours count, or the right and
            the lower one, so that an edge is one pixel wide. Defaults to
            False.

    Returns:
        Tensor: ``(H, W)``, bool.
    """
    edges = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (0, 1):
        length = labels.shape[axis] - 1
        here, there = (labels.narrow(axis, i, length) for i in (0, 1))
        differ = (here != there) & (here != ignore_index)
        differ &= there != ignore_index
        for side in range(1 + both_sides):
            edges.narrow(axis, side, length).logical_or_(differ)
    return edges


def areas(found: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Pixels of each class, ``(3, K)``.

    Where prediction and label agree, of the prediction, and of the label.
    """
    parts = found[found == labels], found, labels
    counts = [p.long().bincount(minlength=num_classes) for p in parts]
    return torch.stack([c[:num_classes] for c in counts]).numpy()


def iou(areas: np.ndarray) -> np.ndarray:
    """IoU of each class, from ``(..., 3, K)`` to ``(..., K)``, in [0, 1].

    NaN where there is no pixel of a class.
    """
    common, found, labelled = np.moveaxis(areas, -2, 0)
    union = found + labelled - common
    return np.divide(
        common, union, out=np.full(union.shape, np.nan), where=union > 0
    )


def mean(ious: Sequence[float]) -> float:
    """Of those that are numbers; NaN if none is."""
    known = [value for value in ious if not np.isnan(value)]
    return float(np.mean(known)) if known else float('nan')
