"""Do images with more in them get more FLOPs?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmdge.registry import METRICS
from mmdge.utils.checks import check_output

from .backbone_flops import cost_of
from .edge_iou import edge_pixels

IGNORED = 255  # the hosts' label of pixels that have none


@METRICS.register_module()
class RatioByContent(BaseMetric):
    """Whether the ratio of dynamic to dense FLOPs follows the content.

    It holds each image's ratio against its annotations, which the test
    pipeline must load, and takes of them what a sample has:

    - ``objects`` and ``area``, of ``gt_instances``: their number, and the
      sum of their boxes' areas over the original image's, where overlaps
      count twice. Crowds and ignored ones are left out;
    - ``edges`` and ``classes``, of ``gt_sem_seg``: the share of pixels whose
      right or lower neighbour is of another class, and the number of
      classes. Pixels with label 255 are left out.

    Keys: ``content/ratio_min`` and ``content/ratio_max``, and for each
    quantity ``content/<quantity>_corr``, Pearson's correlation with the
    ratio over the images, in [-1, 1]; 0 where either is the same for all
    images. It needs :class:`mmdge.CostHook`.

    Args:
        out_file (str | Path, optional): A JSON file for a list with one
            ``{"ratio": .., "objects": .., "area": ..}`` per image, in the
            order of the set; each evaluation writes it anew. For
            ``projects/study/plot_content.py``. Defaults to None.
        collect_device (str): ``'cpu'`` or ``'gpu'``. Defaults to ``'cpu'``.
        prefix (str): Of the keys. Defaults to ``'content'``.

    Raises:
        UserError: If there is no folder for ``out_file``.
    """

    default_prefix = 'content'

    def __init__(
        self,
        out_file: str | os.PathLike | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        # Only the first rank writes, maybe where other nodes have no folder.
        if out_file is not None and is_main_process():
            check_output(out_file, 'out_file')
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep each image's ratio and how much is in it."""
        for sample in data_samples:
            cost = cost_of(sample, type(self).__name__)
            ratio = cost['dynamic'] / cost['dense']
            self.results.append(dict(ratio=ratio, **content(sample)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Correlate over the images of all ranks."""
        if not results:
            raise ValueError('RatioByContent saw no image: is the set empty?')
        if self.out_file is not None:
            Path(self.out_file).write_text(json.dumps(results))
        ratios = [row['ratio'] for row in results]
        return {
            **{
                f'{name}_corr': correlation(*columns(results, name))
                for name in quantities(results)
            },
            'ratio_min': min(ratios),
            'ratio_max': max(ratios),
        }


def content(sample: Mapping[str, Any]) -> dict[str, float]:
    """How much is in an image, by those of its annotations that there are.

    Args:
        sample (dict): A data sample of a host, as metrics get it.

    Returns:
        dict: Quantities by name, see :class:`RatioByContent`; none without
        annotations.
    """
    found = {}
    boxes = sample.get('gt_instances', {}).get('bboxes')
    if boxes is not None:
        height, width = sample['ori_shape'][:2]
        sides = boxes[:, 2:] - boxes[:, :2]
        found['objects'] = len(boxes)
        found['area'] = float(sides.prod(1).sum()) / (height * width)
    maps = sample.get('gt_sem_seg', {})
    labels = maps.get('data', maps.get('sem_seg'))  # mmseg's, mmdet's
    if labels is not None:
        labels = labels.squeeze(0)
        found['edges'] = edge_share(labels)
        found['classes'] = len(labels[labels != IGNORED].unique())
    return found


def edge_share(labels: Tensor) -> float:
    """Share of the labelled pixels that lie on an edge between classes.

    Args:
        labels (Tensor): Classes ``(H, W)``, integers; 255 is no label.

    Returns:
        float: Of all pixels with a label, the share of those whose right or
        lower neighbour has another one, in [0, 1]; 0 without labels.
    """
    labelled = int((labels != IGNORED).sum())
    edges = int(edge_pixels(labels, IGNORED).sum())
    return edges / max(labelled, 1)


def quantities(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of what the rows hold beside the ratio, in their order."""
    return [
        name
        for name in dict.fromkeys(k for r in rows for k in r)
        if name != 'ratio'
    ]


def columns(
    rows: Sequence[Mapping[str, float]], name: str
) -> tuple[list[float], list[float]]:
    """A quantity and the ratio, of the rows that have the quantity."""
    rows = [row for row in rows if name in row]
    return [row[name] for row in rows], [row['ratio'] for row in rows]


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation, in [-1, 1]; 0 where either is constant."""
    # Not by the deviation, which rounding keeps from 0.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
