"""Train on top of a frozen backbone, which sees each image once.

As tools/train.py, whose options it takes, but the backbone's outputs are kept
in files, so that an epoch costs what the rest of the model costs. It pays off
where few versions of an image are seen: as it is, and flipped. Names in the
checkpoint, and the validation, are as ever.

Example::

    python projects/study/train_head.py CONFIG --work-dir WORK_DIR
"""

from __future__ import annotations

import io
import runpy
import sys
from hashlib import sha1
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from plan import ROOT
from torch import Tensor

from mmdge.engine.hooks import find_dynamic_backbone
from mmdge.models.cost import Cost
from mmdge.registry import HOOKS
from mmdge.safe_training.atomic_backend import AtomicBackend
from mmdge.utils import UserError


@HOOKS.register_module(force=True)  # also as a script
class KeepFeatures(Hook):
    """Let a frozen dense backbone compute each training input once.

    Its maps, which must be of one size, are kept in float16, one file for
    each input, named after all that they depend on: the backbone's config,
    its weights, and the pixels as it sees them. Trainings that share these
    share the files.

    Args:
        folder (str): Of the files. Defaults to ``'work_dirs/features'``.

    Raises:
        UserError: Before the training, if there is more to the backbone.
    """

    def __init__(self, folder: str = 'work_dirs/features') -> None:
        self.folder = Path(folder)

    def before_train(self, runner: Any) -> None:
        """Take the place of the backbone's forward; weights are loaded."""
        backbone = find_dynamic_backbone(runner.model, type(self).__name__)
        trained = any(p.requires_grad for p in backbone.parameters())
        if trained or backbone.routers:
            raise UserError(
                'train_head.py is for a backbone that is frozen and dense; '
                'set frozen_stages to its depth and routing=finest, or use '
                'tools/train.py'
            )
        compute, state = backbone.forward, backbone.state_dict()
        config = repr(runner.cfg.model.backbone)
        folder = self.folder / digest(*state.values(), config=config)

        def forward(x: Tensor) -> tuple[Tensor, ...]:
            if not backbone.training:
                return compute(x)
            paths = [folder / f'{digest(image)}.pth' for image in x]
            new = [i for i, path in enumerate(paths) if not path.exists()]
            if new:
                with torch.no_grad():
                    outs = torch.stack(compute(x[new]), 1)  # (B, maps, ...)
                for i, maps, flops in zip(
                    new, outs.half().cpu(), backbone.cost.dense, strict=True
                ):
                    write(paths[i], dict(maps=maps.clone(), flops=flops))
            kept = [torch.load(path, weights_only=True) for path in paths]
            flops = torch.stack([one['flops'] for one in kept]).to(x.device)
            backbone.cost = Cost(dynamic=flops, dense=flops)
            return tuple(torch.stack([one['maps'] for one in kept], 1).to(x))

        backbone.forward = forward

    def after_train(self, runner: Any) -> None:
        """Give it back."""
        del find_dynamic_backbone(runner.model, type(self).__name__).forward


def digest(*tensors: Tensor, config: str = '') -> str:
    """A name, the same for the same values."""
    named = sha1(config.encode())
    for tensor in tensors:
        named.update(tensor.cpu().contiguous().numpy())
    return named.hexdigest()


def write(path: Path, content: dict[str, Tensor]) -> None:
    """Save what an image gave, as a whole or not at all."""
    file = io.BytesIO()
    torch.save(content, file)
    AtomicBackend().put(file.getvalue(), path)


if __name__ == '__main__':
    sys.argv += ['--cfg-options']
    sys.argv += ['default_hooks.features.type=mmdge.KeepFeatures']
    runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
