"""Convert a checkpoint of PVT or ViT between the names of code bases.

Loading needs no conversion; this is for handing weights to other code::

    python tools/model_converters/convert_checkpoint.py \
        work_dirs/mine/epoch_12.pth pvt.pth --to official

Only the backbone's weights are written, position embeddings as they are.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.runner import save_checkpoint

from mmdge.models import TokenRoutingPVT
from mmdge.models.architectures import LAYOUTS
from mmdge.models.weights import (
    EXTRA_PARTS,
    from_ours,
    recognise,
    to_ours,
    unwrap,
)
from mmdge.utils import UserError, checks, launch

# A grid's entries are those of a PVTv2, and more.
KNOWN = (TokenRoutingPVT.layouts[0], *LAYOUTS)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='the checkpoint, of any layout')
    parser.add_argument('target', help='the file to write')
    parser.add_argument(
        '--to',
        choices=sorted({layout.name for layout in KNOWN}),
        default='mmdge',
        help='whose names to use; vtpack is the official DGE code, cf-vit '
        "CF-ViT's; mmdet is for PVT, mmpretrain, mmseg and hf (Hugging "
        "Face's) for ViT (default: mmdge)",
    )
    return parser.parse_args()


def convert(checkpoint: Mapping, name: str) -> tuple[dict, str]:
    """Translate what a file holds; also say what was done."""
    weights, rest = unwrap(checkpoint)
    source = recognise(weights, KNOWN)
    if source is None:
        raise UserError(
            'the checkpoint holds no PVT and no ViT but '
            f'{", ".join(list(weights)[:3])}, ...'
        )
    targets = {la.name: la for la in KNOWN if la.family == source.family}
    if name not in targets:
        raise UserError(
            f'--to {name}: {name} has no {source.family}; allowed are '
            + ', '.join(targets)
        )
    tensors = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    theirs, dropped = from_ours(to_ours(tensors, source), targets[name])
    needed = [key for key in dropped if re.fullmatch(EXTRA_PARTS, key)]
    if needed:
        raise UserError(
            f'--to {name}: {name} has no place for {needed[0]}, without '
            'which the features would be wrong'
        )
    said = f'{source.name} {source.family} to {name}: {len(theirs)} entries'
    if dropped:
        kinds = Counter(re.sub(r'\d+', '*', key) for key in dropped)
        listed = ', '.join(f'{n} {kind}' for kind, n in kinds.items())
        said += f'\n{name} has no place for: {listed}'
    if rest:
        parts = dict.fromkeys(key.partition('.')[0] for key in rest)
        said += f'\nnot of the backbone: {", ".join(parts)}'
    # A part of a fused tensor would take the whole along.
    theirs = {key: value.clone() for key, value in theirs.items()}
    container = targets[name].container
    return ({container: theirs} if container else theirs), said


def main() -> None:
    args = parse_args()
    if Path(args.target).exists():
        raise UserError(f'{args.target} is there already; name another file')
    checks.check_output(args.target, 'target')
    converted, said = convert(checks.open_checkpoint(args.source), args.to)
    save_checkpoint(
        converted, args.target, backend_args=dict(backend='mmdge.atomic')
    )
    print(f'{said}\nwrote {args.target}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
