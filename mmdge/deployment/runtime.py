"""An exported part in its place in the host's model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.models.architectures import Backbone
from mmdge.models.cost import Cost
from mmdge.utils import UserError

from .images import fit
from .onnx_file import Description, require_packages
from .raw_outputs import FLOPS, Maps, as_host, part_of

Run = Callable[[Tensor], Sequence[Tensor]]


class OnnxSession:
    """A file in ONNX Runtime, on the CPU; images to outputs.

    Args:
        path: Of :func:`export_onnx`.
        threads: Of ONNX Runtime. Default: as many as it likes.

    Attributes:
        told (Description): What the file says of itself.
        names (list[str]): Of the outputs.

    Raises:
        UserError: If the file is missing, or is another's, or ONNX Runtime
            is not installed or cannot run it.
    """

    def __init__(
        self, path: str | os.PathLike, threads: int | None = None
    ) -> None:
        require_packages('onnxruntime')
        import onnxruntime

        if not Path(path).is_file():
            raise UserError(f'there is no file {path}')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        if threads:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=['CPUExecutionProvider']
            )
        except Exception as err:  # its errors have no class in common
            raise UserError(
                f'ONNX Runtime cannot load {path}: {_first_line(err)}'
            ) from err
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.told = Description.of_metadata(metadata, path)
        self.names = [out.name for out in self.session.get_outputs()]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Run ``(batch, 3, H, W)``; outputs are on the images' device.

        Raises:
            UserError: If ONNX Runtime fails.
        """
        feed = dict(images=images.detach().cpu().numpy())
        try:
            outs = self.session.run(None, feed)
        except Exception as err:
            raise UserError(
                f'ONNX Runtime fails on images {tuple(images.shape)}: '
                f'{_first_line(err)}'
            ) from err
        return [torch.from_numpy(out).to(images.device) for out in outs]


def set_form(backbone: nn.Module, told: Description) -> None:
    """Let a backbone in PyTorch compute what the file does."""
    if told.form == 'constant':
        for name, router in backbone.routers_by_name().items():
            shares = told.shares[name]
            router.fixed_shares = shares and tuple(shares)
        backbone.constant_shapes = True


def replace_part(
    model: nn.Module, run: Run, names: Sequence[str], told: Description
) -> None:
    """Put what was exported in its place in a host's model.

    The host's predictions, post-processing and metrics go on as they are, and
    so do hooks that read the backbone's cost. Only this model is changed, no
    class. Images come in any number: a batch that is smaller than that of the
    file is padded with images of zeros, whose outputs are cut off.

    Args:
        model: Of the kind that was exported, with the same weights.
        run: From ``(told.batch, 3, H, W)`` to the outputs: an
            :class:`OnnxSession`, or PyTorch's, to compare.
        names: Of the outputs.
        told: What the file says of itself.

    Raises:
        UserError: When called with images of a size that the file is not
            for, or if the outputs are not the model's.
    """
    part = part_of(model, told.scope)

    def maps_of(images: Tensor) -> Maps:
        whole = fit(images, told.size, told.pads, told.divisor)
        outs = []
        for chunk in whole.split(told.batch):
            number = len(chunk)
            # (n, C, H, W) -> (batch, C, H, W)
            chunk = F.pad(chunk, (0,) * 7 + (told.batch - number,))
            outs.append([out[:number] for out in run(chunk)])
        whole = map(torch.cat, zip(*outs, strict=True))
        outs = dict(zip(names, whole, strict=True))
        flops = outs.pop(FLOPS, None)
        if isinstance(model.backbone, Backbone):
            if flops is None:
                flops = images.new_tensor(told.flops, dtype=torch.float64)
                flops = flops.expand(len(images), 2)
            model.backbone.cost = Cost.of_stages([Cost(*flops.unbind(1))])
        return as_host(part, outs)

    model.backbone.forward = maps_of
    if part.head is not None:
        if getattr(model, 'neck', None) is not None:
            model.neck.forward = lambda maps: maps
        part.head.forward = lambda maps, *args, **kwargs: maps.found
        if part.head is not getattr(model, 'head', part.head):
            model.head.predict = part.head.predict


def _first_line(err: Exception) -> str:
    return str(err).strip().split('\n')[0]
