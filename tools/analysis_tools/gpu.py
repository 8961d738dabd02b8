"""Test and time everything that needs a GPU, in one go, for one page.

It runs the tests that ask for a GPU, then benchmark.py: inference in three
precisions and batch sizes, also with constant shapes and in CUDA graphs,
whole models, and training. What fails is named, and the rest goes on.

Example::

    python tools/analysis_tools/gpu.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from mmdge.utils import UserError, launch, timing

ROOT = Path(__file__).resolve().parents[2]
DGE = ROOT / 'configs/dge'
PVT = DGE / 'retinanet_dge-pvt-s_fpn_1x_coco.py'
VIT = DGE / 'retinanet_dge-deit-s_simplefpn_1x_coco.py'
DTYPES = ('--dtype', 'float32', 'bfloat16', 'float16')
BATCHES = ('--batch-size', '1', '8', '64')
SIZES = ('--size', '512x512', '800x1216')
ARMS = ('--arms', 'dynamic', 'variance', 'host', 'smaller')
BOTH = (*SIZES, *BATCHES, *DTYPES, *ARMS, 'constant', 'graph')
# Arguments of benchmark.py, by the headings of the page.
RUNS = {
    'DGE-PVT-S': (PVT, *BOTH),
    'DGE-DeiT-S': (VIT, *BOTH),
    'RetinaNet with DGE-PVT-S': (
        *(PVT, '--scope', 'model', '--size', '800x1216', *DTYPES),
        *('--batch-size', '1', '8', '--arms', 'dynamic', 'variance'),
    ),
    'Training DGE-PVT-S': (
        *(PVT, '--train', '--size', '512x512', *DTYPES, '--batch-size', '8'),
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out',
        type=Path,
        default='work_dirs/gpu',
        help='folder of the page, gpu.md, of logs and of all figures as JSON '
        '(default: work_dirs/gpu)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not torch.cuda.is_available():
        raise UserError('PyTorch sees no GPU, and all of this needs one')
    folder, failed = args.out.resolve(), []
    folder.mkdir(parents=True, exist_ok=True)

    def run(name: str, *command: str | Path) -> str:
        """Run a part; its output goes on the screen, and to a file."""
        print(f'== {name}', flush=True)
        log = folder / f'{name}.log'
        with (
            log.open('w') as file,
            subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            for line in process.stdout:
                print(line, end='', flush=True)
                file.write(line)
        if process.returncode:
            failed.append(f'{name}, see {log}')
        return log.read_text()

    tests = run('tests', '-m', 'pytest', '-q', '-m', 'gpu', 'tests')
    device = timing.device_name(torch.device('cuda'))
    page = [
        f'{device}, PyTorch {torch.__version__}.',
        f'Tests that need a GPU: {tests.strip().splitlines()[-1]}.',
    ]
    for name, arguments in RUNS.items():
        tables = folder / f'{name}.md'
        tables.unlink(missing_ok=True)
        run(
            name,
            *('tools/analysis_tools/benchmark.py', *arguments),
            *('--device', 'cuda', '--markdown', tables),
            *('--json', folder / f'{name}.json'),
        )
        text = tables.read_text() if tables.exists() else 'Failed.'
        page.append(f'\n### {name}\n\n{text}')
        (folder / 'gpu.md').write_text('\n'.join(page) + '\n')
    print(f'The page for docs/benchmarks.md: {folder / "gpu.md"}')
    if failed:
        raise UserError(f'failed: {"; ".join(failed)}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
