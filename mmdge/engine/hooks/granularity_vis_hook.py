"""A picture of where the queries went."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer
from torch import Tensor

from mmdge.models.cost import Cost
from mmdge.registry import HOOKS

from .cost_hook import (
    find_dynamic_backbones,
    is_last_of_its_kind,
    is_samples,
)


class StagePanel(NamedTuple):
    """A title, and the share of the dense compute that each pixel got.

    ``(H, W)``, in [0, 1], the mean over a stage's decisions; NaN without any.
    """

    title: str
    queries: np.ndarray


@HOOKS.register_module()
class GranularityVisHook(Hook):
    """Draw the queries that each region got, stage by stage, over the image.

    The first images of each evaluation become one picture, a row per image,
    given to MMEngine's visualizer (on disk: ``vis_data/vis_image`` in the
    run's folder).

    Args:
        num_images (int): Images to draw per evaluation. Defaults to 4.
        name (str): Of the picture. Defaults to ``'granularity'``.
    """

    priority = 'LOW'

    def __init__(self, num_images: int = 4, name: str = 'granularity') -> None:
        self.num_images = num_images
        self.name = name
        self._rows = []

    def _before_epoch(self, runner: Any, mode: str = 'train') -> None:
        self._rows = []

    def _after_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
        mode: str = 'train',
    ) -> None:
        missing = self.num_images - len(self._rows)
        if mode == 'train' or missing <= 0 or not is_samples(outputs):
            return
        if not is_last_of_its_kind(self, runner):
            return  # a config's counts, not that of its base
        # Of a teacher and its student, the last in the model.
        *_, backbone = find_dynamic_backbones(
            runner.model, type(self).__name__
        )
        cost = backbone.cost
        # What the model saw, whatever the pipeline did to the file.
        inputs = data_batch['inputs']
        if not (
            all(isinstance(i, Tensor) and i.dim() == 3 for i in inputs)
            and covers(cost, inputs[0].shape[-2:])
        ):
            if batch_idx == 0:
                runner.logger.warning(
                    f'{type(self).__name__}: no picture, because the backbone '
                    'saw no image just once and whole (sliding windows or '
                    'test-time augmentation).'
                )
            return
        images = [to_picture(image) for image in inputs[:missing]]
        for i, image in enumerate(images):
            panels = stage_panels(cost, i, image.shape[:2])
            self._rows.append((image, panels))

    @master_only
    def _after_epoch(self, runner: Any, mode: str = 'train') -> None:
        if mode == 'train' or not self._rows:
            return
        visualizer = Visualizer.get_current_instance()
        picture = draw_granularity(self._rows)
        # A test has no iteration: asking would build the training data.
        step = runner.iter if mode == 'val' else 0
        visualizer.add_image(self.name, picture, step=step)
        self._rows = []


def to_picture(image: Tensor) -> np.ndarray:
    """Turn a model's input into an RGB picture.

    Args:
        image (Tensor): ``(C, H, W)``, of any range; channels as the hosts
            load them, blue, green, red first; of fewer than three the mean is
            shown as grey, more are left out.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8.
    """
    pixels = image.cpu().float()[:3]
    if len(pixels) < 3:
        pixels = pixels.mean(0).expand(3, -1, -1)
    if image.dtype != torch.uint8:  # normalised: show what range there is
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp(min=1e-6) * 255
    return pixels.flip(0).byte().permute(1, 2, 0).numpy()


def covers(cost: Cost, size: tuple[int, int]) -> bool:
    """Whether the maps are those of one pass over whole images."""
    names = [routed.name for routed in cost.maps]
    return len(set(names)) == len(names) and all(
        side - cells * routed.cell < routed.cell
        for routed in cost.maps
        for side, cells in zip(size, routed.share.shape[1:], strict=True)
    )


def stage_panels(
    cost: Cost, index: int, size: tuple[int, int]
) -> list[StagePanel]:
    """Panels of one image.

    Args:
        cost (Cost): Of a batch, with stages.
        index (int): Of the image in the batch.
        size (tuple[int, int]): Height and width of the image as the model
            saw it, without padding.
    """
    panels = []
    for number, stage in enumerate(cost.stages, 1):
        dynamic, dense = stage.dynamic[index], stage.dense[index]
        title = f'stage {number}: {float(dynamic / dense):.0%} of FLOPs'
        shares = []
        # What is decided for the whole image shows no place.
        maps = [m for m in stage.maps if m.shows_place]
        for routed in maps or stage.maps:
            share = routed.share[index].cpu().numpy()
            for axis in (0, 1):  # regions to pixels
                share = share.repeat(routed.cell, axis)
            shares.append(share[: size[0], : size[1]])
        # Where a border narrower than a patch is cut off, maps end early.
        queries = np.full(size, np.nan)
        if shares:
            mean = np.mean(shares, axis=0)
            queries[: mean.shape[0], : mean.shape[1]] = mean
        panels.append(StagePanel(title, queries))
    return panels


def draw_granularity(
    rows: Sequence[tuple[np.ndarray, list[StagePanel]]],
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw images and their panels as one picture.

    Args:
        rows (Sequence): An RGB image ``(H, W, 3)``, uint8, and its panels,
            for each row.
        titles (Sequence[str], optional): Of the images. Defaults to None:
            all are called image.

    Returns:
        np.ndarray: RGB picture, uint8.
    """
    num_columns = 1 + max(len(panels) for _, panels in rows)
    least = min(
        float(np.nanmin(panel.queries, initial=1 / 16))
        for _, panels in rows
        for panel in panels
    )
    least = max(least, 1 / 256)  # where rows are dropped it is 0
    norm = LogNorm(least, 1, clip=True)
    figure = Figure(
        figsize=(2.4 * num_columns, 2.5 * len(rows) + 0.9),
        dpi=100,
        layout='constrained',
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    titles = titles or ['image'] * len(rows)
    for line, (image, panels), title in zip(axes, rows, titles, strict=True):
        line[0].imshow(image)
        line[0].set_title(title, fontsize=9)
        grey = image.mean(2) / 255
        for axis, panel in zip(line[1:], panels, strict=False):
            axis.imshow(grey, cmap='gray', vmin=-0.2, vmax=1.2)
            axis.imshow(
                np.ma.masked_invalid(panel.queries),
                cmap='viridis',
                norm=norm,
                alpha=0.6,
                interpolation='nearest',
            )
            axis.set_title(panel.title, fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(norm, 'viridis'),
        ax=axes,
        location='bottom',
        shrink=0.5,
        aspect=40,
        pad=0.02,
        label='share of the dense compute, mean over the decisions',
    )
    ticks = [1 / n for n in (1, 4, 16, 64, 256) if 1 / n >= least]
    bar.set_ticks(ticks, labels=[str(Fraction(tick)) for tick in ticks])
    bar.ax.minorticks_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
