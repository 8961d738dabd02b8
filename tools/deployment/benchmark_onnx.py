"""Time files of export_onnx.py in ONNX Runtime, in turns, beside the first.

Export the dense twin for that (``--cfg-options
model.backbone.routing=finest``), and name it first.

Example::

    python tools/deployment/benchmark_onnx.py DENSE.onnx ROUTED.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from mmdge.deployment import FLOPS, OnnxSession
from mmdge.utils import UserError, launch, timing
from mmdge.utils.arguments import positive
from mmdge.utils.tables import print_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('files', nargs='+', help='of one size and batch')
    add('--threads', type=positive, help='of ONNX Runtime (default: its own)')
    add('--repeats', type=positive, default=15, help='default: 15')
    return parser.parse_args()


def flops_of(
    session: OnnxSession, outs: list[Tensor]
) -> Sequence[float] | None:
    """Multiply-adds of the backbone per image, dynamic and dense."""
    found = dict(zip(session.names, outs, strict=True)).get(FLOPS)
    return session.told.flops if found is None else found.mean(0).tolist()


def main() -> None:
    args = parse_args()
    sessions = {path: OnnxSession(path, args.threads) for path in args.files}
    shapes = {(s.told.batch, s.told.size) for s in sessions.values()}
    if len(shapes) > 1 or None in [size for _, size in shapes]:
        raise UserError(
            'files must be for images of one size, and as many, but are for '
            f'{sorted(shapes, key=str)}'
        )
    ((batch, size),) = shapes
    images = torch.randn(batch, 3, *size)
    runs = {p: lambda s=s: s(images) for p, s in sessions.items()}
    # Memory is planned in the first run. Where the image decides, noise may
    # get another amount than the images that the file was measured on.
    flops = {p: flops_of(s, runs[p]()) for p, s in sessions.items()}
    cpu = torch.device('cpu')
    times = timing.interleave(runs, range(args.repeats), cpu)
    rows, first = [], args.files[0]
    for path, session in sessions.items():
        lower, median, upper = timing.Quartiles.of(times[path])
        spent = flops[path]
        rows.append(
            (
                path,
                session.told.form,
                1e3 * median,
                f'{1e3 * lower:.4g}-{1e3 * upper:.4g}',
                f'{spent[0] / spent[1]:.3f}' if spent else '-',
                f'{median / timing.Quartiles.of(times[first]).median:.3f}',
            )
        )
    print_table(
        f'{batch} x {size[0]} x {size[1]}, {timing.device_name(cpu)}',
        ('file', 'form', 'ms', 'quartiles', 'FLOPs ratio', 'time ratio'),
        rows,
        width=150,
    )


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
