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

from mmdge.datasets import write_shapes
from mmdge.models import share_for_budget
from mmdge.utils import UserError, launch
from mmdge.utils.tables import print_table

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / 'configs/shapes/retinanet_dge-pvt_fpn_shapes.py'
ROUTING = 'model.backbone.routing'
SMALLER = 'test_dataloader.dataset.pipeline.1.scale_factor=0.75'


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


def run(name: str, tool: str, *arguments: str | Path, log: Path) -> None:
    """Run a tool, its log in a file and its progress on the screen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f'\n== {name} (log: {log})', flush=True)
    with (
        log.open('w') as file,
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', TOOLS / tool, *arguments],
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
    head, *entries = line.split('  ')
    kept = [e.strip() for e in entries if e.strip().split(':')[0] in shown]
    return '  '.join([head.rstrip(), *kept])


def random_routing(config: Path, ratio: float) -> list[str]:
    """Config entries of random routing at a ratio of FLOPs."""
    backbone = Config.fromfile(config).model.backbone
    share = share_for_budget(backbone, ratio, (256, 256))
    return [
        f'{ROUTING}._delete_=True',
        f'{ROUTING}.type=RandomRouter',
        f'{ROUTING}.share=[{",".join(f"{part:.6f}" for part in share)}]',
    ]


def report(rows: dict[str, dict]) -> None:
    columns = {
        'AP': 'coco/bbox_mAP',
        'AP50': 'coco/bbox_mAP_50',
        'GFLOPs mean': 'backbone/GFLOPs',
        'p5': 'backbone/GFLOPs_p5',
        'p95': 'backbone/GFLOPs_p95',
        'ratio': 'backbone/FLOPs_ratio',
        'ratio std': 'backbone/FLOPs_ratio_std',
    }
    print_table(
        'RetinaNet + DGE-PVT on shapes, one checkpoint',
        ('routing', *columns, 'ms/image'),
        [
            (
                name,
                *(f'{found[key]:.3f}' for key in columns.values()),
                f'{1000 * (found["time"] - found["data_time"]):.1f}',
            )
            for name, found in rows.items()
        ],
        'GFLOPs: 1e9 multiply-adds of the backbone. ms: mean of the whole '
        'detector, batch 1, without data loading; no benchmark.',
    )


def data_options(root: Path) -> list[str]:
    """Config entries that lead to the data set, wherever it is."""
    file = root / 'annotations' / 'instances_val.json'
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    return [
        *(f'{loader}.dataset.data_root={root}/' for loader in loaders),
        *(f'{each}_evaluator.0.ann_file={file}' for each in ('val', 'test')),
    ]


def main() -> None:
    args = parse_args()
    start, folder = time.time(), args.work_dir
    root = args.data_root or Path('data/shapes')
    if args.data_root is None:
        print(f'== Drawing the data set {root}', flush=True)
        drawn = write_shapes(root, progress=track_iter_progress)
        print('' if drawn else 'It is there already.')

    options = ['--cfg-options', *data_options(root), *args.cfg_options]
    command = ['train.py', CONFIG, '--work-dir', folder / 'train', *options]
    run('Training', *command, log=folder / 'train.log')
    checkpoint = (folder / 'train/last_checkpoint').read_text()
    # As it was trained, with all options.
    (config,) = (folder / 'train').glob('*.py')

    rows = {}

    def evaluate(title: str, name: str, *options: str) -> dict:
        tested = folder / f'test_{name}'
        command = ['test.py', config, checkpoint, '--work-dir', tested]
        if options:
            command += ['--cfg-options', *options]
        title_of_run = f'Evaluating with routing: {title}'
        run(title_of_run, *command, log=tested.with_suffix('.log'))
        *_, log = sorted(tested.glob('2*/2*.json'))
        rows[title] = json.loads(log.read_text())
        return rows[title]

    spent = evaluate('its own', 'own')['backbone/FLOPs_ratio']
    twin = f'{ROUTING}=finest'
    dense = evaluate('finest (dense twin)', 'finest', twin)
    smaller = evaluate('finest, input x .75', 'smaller', twin, SMALLER)
    flops = 'backbone/GFLOPs'
    smaller['backbone/FLOPs_ratio'] = smaller[flops] / dense[flops]
    evaluate('random, same FLOPs', 'random', *random_routing(config, spent))
    print()
    report(rows)
    *_, picture = sorted(folder.glob('test_own/2*/vis_data/*/*.png'))
    print(f'Where the queries went, as a picture: {picture}')
    print(f'Done in {(time.time() - start) / 60:.1f} minutes.')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
