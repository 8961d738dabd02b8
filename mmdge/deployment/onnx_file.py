"""What an exported file says of itself, in ONNX's ``metadata_props``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from os import PathLike
from typing import Any

import torch
from torch import nn

from mmdge.utils import UserError

PREFIX = 'mmdge.'
Size = tuple[int, int]


@dataclass(frozen=True)
class Description:
    """What is known of an exported model; each value is JSON in the file.

    Attributes:
        version: Of this package.
        config: Name of the config file.
        scope: ``'model'`` or ``'backbone'``.
        form: ``'constant'``: each image gets the same numbers of rows;
            ``'adaptive'``: the router decides; ``'dense'``: nothing is
            routed.
        size: Height and width of the images; None: any.
        divisor: What divides both, where any size goes.
        batch: Images per run.
        pads: Whether a smaller image may be padded with zeros.
        weights: Digest of the weights.
        flops: Multiply-adds of the backbone per image, dynamic and dense,
            the mean over ``num_images``; None for a backbone that doesn't
            count.
        num_images: From which shares and FLOPs were measured.
        shares: Of each router, by name, where they are fixed: the share of
            cells that each candidate gets.
    """

    version: str
    config: str
    scope: str
    form: str
    size: Size | None
    divisor: int
    batch: int
    pads: bool
    weights: str
    flops: tuple[float, float] | None = None
    num_images: int = 0
    shares: dict[str, list[float]] | None = None

    def as_metadata(self) -> dict[str, str]:
        """Strings by name."""
        return {PREFIX + k: json.dumps(v) for k, v in asdict(self).items()}

    @classmethod
    def of_metadata(
        cls, metadata: dict[str, str], path: str | PathLike
    ) -> Description:
        """Read what was written.

        Raises:
            UserError: If it is no file of this package.
        """
        names = [field.name for field in fields(cls)]
        if any(PREFIX + name not in metadata for name in names):
            raise UserError(
                f'{path} does not say what it holds, as the files of '
                'tools/deployment/export_onnx.py do; export the model with it'
            )
        values: dict[str, Any] = {
            name: json.loads(metadata[PREFIX + name]) for name in names
        }
        for name in ('size', 'flops'):
            values[name] = values[name] and tuple(values[name])
        return cls(**values)


def require_packages(*names: str) -> None:
    """Raise a UserError unless these packages are installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f'{" and ".join(missing)} not installed; get all that an export '
            "needs by `pip install 'mmdge[deploy]'`"
        )


def digest(model: nn.Module) -> str:
    """A short name for all weights of a model."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        data = value.detach().cpu().contiguous().flatten()
        total.update(data.view(torch.uint8).numpy())
    return total.hexdigest()[:16]
