"""First light: draw shapes, train a dynamic RetinaNet, evaluate, compare.

What ``make demo`` runs; about eight minutes on two CPU cores. Everything is
written to ``work_dirs/demo``; the figures of the table are those of the log
lines found there.

Example::

    python tools/demo.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import track_iter_progress
from rich.console import Console
from rich.table import Table

from mmdge.datasets import write_shapes
from mmdge.models import share_for_budget
from mmdge.utils import UserError, launch

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / 'configs/shapes/retinanet_dge-pvt_fpn_shapes.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--work-dir',
        type=Path,
        default='work_dirs/demo',
        help='where everything is written (default: work_dirs/demo)',
    )
    parser.add_argument(
        '--data-root',
        type=Path,
        help='a data set drawn before, in place of data/shapes, which is '
        'drawn if need be',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='passed on to training and evaluation',
    )
    return parser.parse_args()


def run(name: str, tool: str, arguments: list, log: Path) -> None:
    """Run a tool, its log in a file and its progress on the screen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f'\n== {name} (log: {log})', flush=True)
    command = [sys.executable, '-W', 'ignore', TOOLS / tool, *arguments]
    with (
        log.open('w') as file,
        subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(os.environ, PYTHONUNBUFFERED='1'),
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            _, epoch, rest = line.partition('Epoch(')
            if epoch:
                print(epoch + shorten(rest), flush=True)
    if process.returncode:
        tail = log.read_text().splitlines()[-5:]
        raise UserError('\n'.join([f'{name} failed; see {log}:', *tail]))


def shorten(line: str) -> str:
    """Keep of a log line what fits on a screen."""
    shown = ('eta', 'loss', 'flops_ratio', 'coco/bbox_mAP', 'backbone/GFLOPs')
    head, *entries = line.rstrip().split('  ')
    kept = [e.strip() for e in entries if e.strip().split(':')[0] in shown]
    return '  '.join([head.rstrip(), *kept])


def last_metrics(work_dir: Path) -> dict:
    """The figures of the last evaluation below a work dir."""
    logs = sorted(work_dir.glob('2*/2*.json'))
    return json.loads(logs[-1].read_text())


def random_routing(config: Path, rows: dict[str, dict]) -> list[str]:
    """Config entries of random routing at the FLOPs of the first row."""
    backbone = Config.fromfile(config).model.backbone
    ratio = rows['its own']['backbone/FLOPs_ratio']
    share = share_for_budget(backbone, ratio, (256, 256))
    key = 'model.backbone.routing'
    return [
        f'{key}._delete_=True',
        f'{key}.type=RandomRouter',
        f'{key}.share=[{",".join(f"{part:.6f}" for part in share)}]',
    ]


def print_table(rows: dict[str, dict]) -> None:
    table = Table(title='RetinaNet + DGE-PVT on shapes, one checkpoint')
    table.add_column('routing')
    columns = {
        'AP': 'coco/bbox_mAP',
        'AP50': 'coco/bbox_mAP_50',
        'GFLOPs mean': 'backbone/GFLOPs',
        'p5': 'backbone/GFLOPs_p5',
        'p95': 'backbone/GFLOPs_p95',
        'ratio': 'backbone/FLOPs_ratio',
        'ratio std': 'backbone/FLOPs_ratio_std',
    }
    for column in (*columns, 'ms/image'):
        table.add_column(column, justify='right')
    for name, metrics in rows.items():
        ms = 1000 * (metrics['time'] - metrics['data_time'])
        cells = [f'{metrics[key]:.3f}' for key in columns.values()]
        table.add_row(name, *cells, f'{ms:.1f}')
    console = Console(width=100)
    console.print(table)
    console.print(
        'GFLOPs: 1e9 multiply-adds of the backbone. ms: mean of the whole '
        'detector, batch 1, without data loading; no benchmark.'
    )


def data_options(root: Path) -> list[str]:
    """Config entries that lead to the data set, wherever it is."""
    annotations = root / 'annotations' / 'instances_val.json'
    return [
        *(
            f'{split}_dataloader.dataset.data_root={root}/'
            for split in ('train', 'val', 'test')
        ),
        *(
            f'{split}_evaluator.0.ann_file={annotations}'
            for split in ('val', 'test')
        ),
    ]


def main() -> None:
    args = parse_args()
    start = time.time()
    root = args.data_root or Path('data/shapes')
    if args.data_root is None:
        print(f'== Drawing the data set {root}', flush=True)
        try:
            drawn = write_shapes(root, progress=track_iter_progress)
        except ValueError as error:
            raise UserError(str(error)) from error
        print('' if drawn else 'It is there already.')

    options = [*data_options(root), *args.cfg_options]
    folder = args.work_dir / 'train'
    run(
        'Training',
        'train.py',
        [CONFIG, '--work-dir', folder, '--cfg-options', *options],
        args.work_dir / 'train.log',
    )
    checkpoint = (folder / 'last_checkpoint').read_text()
    (config,) = folder.glob('*.py')  # as it was trained, with all options

    rows = {}
    for title, name in (
        ('its own', 'own'),
        ('finest (dense twin)', 'finest'),
        ('random, same FLOPs', 'random'),
    ):
        if name == 'own':
            routing = []
        elif name == 'finest':
            routing = ['--cfg-options', 'model.backbone.routing=finest']
        else:
            routing = ['--cfg-options', *random_routing(config, rows)]
        folder = args.work_dir / f'test_{name}'
        run(
            f'Evaluating with routing: {title}',
            'test.py',
            [config, checkpoint, '--work-dir', folder, *routing],
            folder.with_suffix('.log'),
        )
        rows[title] = last_metrics(folder)

    print()
    print_table(rows)
    pictures = sorted((args.work_dir / 'test_own').glob('2*/vis_data/*/*.png'))
    print(f'Where the queries went, as a picture: {pictures[-1]}')
    print(f'Done in {(time.time() - start) / 60:.1f} minutes.')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
