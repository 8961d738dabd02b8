"""Publish a checkpoint: its weights, config, revision, metric and FLOPs.

What only a training needs is left behind, and the name gets the date and the
first digits of the file's sha256, as OpenMMLab's have.

Example::

    python tools/publish_model.py work_dirs/NAME/epoch_12.pth NAME.pth
"""

import argparse
import hashlib
import io
import json
import pickle
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from mmengine import fileio
from mmengine.utils import get_git_hash

from mmdge import __version__
from mmdge.safe_training import open_checkpoint
from mmdge.utils import UserError, launch

# Entries of a training's meta that say what the weights are.
KEPT = ('cfg', 'dataset_meta', 'epoch', 'iter', 'mmengine_version', 'seed')
NO_METRIC = ('data_time', 'time', 'step')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'checkpoint', type=Path, help='a checkpoint that a training wrote'
    )
    parser.add_argument(
        'out',
        type=Path,
        metavar='OUT.pth',
        help='file to write; becomes OUT_YYYYMMDD-<8 digits>.pth',
    )
    parser.add_argument(
        '--metrics',
        type=Path,
        metavar='FILE.json',
        help='what tools/test.py found with this checkpoint, '
        '<work-dir>/<time>/<time>.json (default: what the training found in '
        'the evaluation after it)',
    )
    args = parser.parse_args()
    if args.out.suffix != '.pth':
        parser.error(f'OUT.pth must end in .pth, not {str(args.out)!r}')
    return args


def tested(path: Path) -> dict[str, float]:
    """What a test wrote."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as err:
        raise UserError(
            f'--metrics needs the JSON of one test, and {path} is none: {err}'
        ) from err
    return entries if isinstance(entries, dict) else {}


def evaluated(checkpoint: Path, meta: dict) -> dict[str, float]:
    """What the training found in its evaluation after the checkpoint."""
    # The folder of a run is named by the time at the end of its name.
    run = str(meta.get('experiment_name'))[-15:]
    log = checkpoint.parent / run / 'vis_data' / 'scalars.json'
    # A look at the text: to read it as a config would run it.
    by_iter = re.search(r'log_metric_by_epoch\s*=\s*False', meta['cfg'])
    step = meta['iter' if by_iter else 'epoch']
    found = []
    for line in log.read_text().splitlines() if log.is_file() else ():
        # One is cut off where a process was killed.
        with suppress(json.JSONDecodeError):
            entries = json.loads(line)
            if 'lr' not in entries and entries['step'] == step:
                found.append(entries)
    if len(found) != 1:
        raise UserError(
            f'{log} holds {len(found)} evaluations of {checkpoint}; evaluate '
            'it with tools/test.py and name the JSON that this writes with '
            '--metrics'
        )
    return found[0]


def published(checkpoint: dict, metrics: dict[str, float]) -> dict[str, dict]:
    """Keep what says what the weights are, and add what they achieve."""
    meta = checkpoint['meta']
    # MMEngine writes the commit of the folder that a process runs in.
    commit = re.search('[0-9a-f]{40}$', meta.get('mmengine_version', ''))
    return dict(
        # Those that were evaluated: with EMA, the averaged ones.
        state_dict=checkpoint['state_dict'],
        meta=dict(
            {key: meta[key] for key in KEPT if key in meta},
            mmdge_version=__version__,
            revision=dict(
                training=commit[0] if commit else 'unknown',
                publishing=get_git_hash(),
            ),
            metrics={k: v for k, v in metrics.items() if k not in NO_METRIC},
        ),
    )


def main() -> None:
    args = parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    meta = checkpoint.get('meta') or {}
    if 'state_dict' not in checkpoint or not meta.get('cfg'):
        raise UserError(
            f'{args.checkpoint} does not say by which config it was trained; '
            'publish a checkpoint that tools/train.py wrote'
        )
    if args.metrics:
        metrics = tested(args.metrics)
    else:
        metrics = evaluated(args.checkpoint, meta)
    content = published(checkpoint, metrics)
    if not content['meta']['metrics']:
        raise UserError(
            f'{args.metrics or "the log"} holds no metric; name with '
            '--metrics the JSON that tools/test.py writes'
        )

    file = io.BytesIO()
    torch.save(content, file)
    try:
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except pickle.UnpicklingError as err:
        raise UserError(
            f'{args.checkpoint} holds more than plain values in its weights '
            f'or dataset_meta: {str(err).splitlines()[0]}'
        ) from err
    digits = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    date = time.strftime('%Y%m%d')
    path = args.out.with_name(f'{args.out.stem}_{date}-{digits}.pth')
    fileio.put(file.getvalue(), path, dict(backend='mmdge.atomic'))
    for name, value in content['meta']['metrics'].items():
        print(f'{name}: {value}')
    print(f'published: {path}')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
