"""From a host's model to a file for ONNX Runtime and other runtimes."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from mmengine.fileio import put
from torch import Tensor
from torch.export import Dim

from mmdge.utils import UserError

from .onnx_file import Description, require_packages
from .raw_outputs import RawOutputs
from .runtime import OnnxSession

# Largest difference from PyTorch, in an output's unit or of its largest value.
TOLERANCE = 1e-4


@torch.no_grad()
def export_onnx(
    raw: RawOutputs,
    batches: Sequence[Tensor],
    path: str | os.PathLike,
    told: Description,
) -> float:
    """Write a model's raw outputs as ONNX, all of it or nothing.

    Args:
        raw: In evaluation mode, on the CPU.
        batches: Images, ``(told.batch, 3, H, W)`` each. The first is what
            the exporter follows; on the others ONNX Runtime must agree.
        path: Where to write.
        told: What the file says of itself.

    Returns:
        float: The largest difference between ONNX Runtime's and PyTorch's
        outputs.

    Raises:
        UserError: If a package is missing, something in the model cannot be
            exported, or the outputs differ.
    """
    require_packages('onnx', 'onnxscript', 'onnxruntime')
    free = None if told.size else ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        with _quiet():
            program = torch.onnx.export(
                raw,
                (batches[0],),
                input_names=['images'],
                output_names=[*raw.named(batches[0])],
                dynamic_shapes=free,
                verbose=False,
            )
    except Exception as err:  # the exporter's have no class in common
        raise UserError(_reason(err, told)) from err
    program.model.metadata_props.update(told.as_metadata())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        program.save(file, external_data=False)
        session = OnnxSession(file)
        worst = max(_difference(raw, session, x) for x in batches[1:])
        whole = dict(backend='mmdge.atomic')
        put(file.read_bytes(), os.fspath(path), backend_args=whole)
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says of its own parts, graphs included."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(logging.NOTSET)


def _difference(
    raw: RawOutputs, session: OnnxSession, images: Tensor
) -> float:
    """The largest one between outputs of PyTorch and of ONNX Runtime."""
    errors = []
    for found, (name, right) in zip(
        session(images), raw.named(images).items(), strict=True
    ):
        errors.append((found - right).abs().max().item())
        if not errors[-1] <= TOLERANCE * max(1, right.abs().max().item()):
            raise UserError(
                f'ONNX Runtime and PyTorch differ by {errors[-1]:.2g} in the '
                f'output {name}, so no file was written; please report this'
            )
    return max(errors)


def _reason(err: BaseException | None, told: Description) -> str:
    """One sentence of what hinders an export."""
    said = []
    while err is not None:
        if isinstance(err, UserError):
            return str(err)
        said.append(f'{type(err).__name__}: {err}')
        err = err.__cause__ or err.__context__
    missing = re.search(
        r"No ONNX function found for <OpOverload\(op='([\w.]+)'",
        '\n'.join(said),
    )
    if missing:
        return (
            f'ONNX has no form of the operator {missing[1]}, which the model '
            'uses; use another layer, or export --scope backbone'
        )
    last = said[-1].strip().splitlines()[0]
    if told.size is None:
        return (
            f'this model cannot be exported for any size ({last}); export one '
            'size by leaving out --dynamic'
        )
    return f'torch.export cannot follow this model ({last})'
