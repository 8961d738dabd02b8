"""Run the tools as a user would, in processes of their own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHAPES = dict(
    mmdet='configs/shapes/retinanet_dge-pvt_fpn_shapes.py',
    mmseg='configs/shapes/fpn_dge-pvt_shapes.py',
    mmpretrain='configs/shapes/dge-pvt_shapes-crops.py',
)

# Where two processes are asked for, or results to the last bit.
ON_CPU = dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')


# For runs in the test's own process, or of a second.
NO_WORKERS = [
    f'{split}_dataloader.{option}'
    for split in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
]


def run(*command, expect=0, timeout=300, **env):
    """Run a command in the repository; return what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == expect, result.stdout[-3000:]
    return result.stdout


def python(*command, **kwargs):
    return run(sys.executable, *command, **kwargs)


def own(host, name, folder='tools'):
    """A script or config of a host, where its package puts it."""
    package = Path(importlib.util.find_spec(host).origin).parent
    script = package / '.mim' / folder / name
    if not script.is_file():
        pytest.skip(f'{host} brings no {name} along')
    return script


def error_in(said):
    """The one line in which a tool says what is wrong."""
    (error,) = re.findall('^error: (.*)$', said, re.MULTILINE)
    assert 'Traceback' not in said
    return error


def equal(one, other):
    """Whether two checkpoints' entries are the same, to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, 'shape'):
        return one.shape == other.shape and bool((one == other).all())
    return one == other


def functions_of(script):
    """A tool as a module, not run."""
    spec = importlib.util.spec_from_file_location('tool', ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data_options(host, shapes):
    """Lead a host's config of shapes to a data set drawn elsewhere.

    It draws no pictures, which take a third of a short run.
    """
    root = shapes / 'crops' if host == 'mmpretrain' else shapes
    options = [
        f'{split}_dataloader.dataset.data_root={root}/'
        for split in ('train', 'val', 'test')
    ]
    options.append('default_hooks.granularity.num_images=0')
    if host == 'mmdet':
        annotations = shapes / 'annotations' / 'instances_val.json'
        options += [
            f'{split}_evaluator.0.ann_file={annotations}'
            for split in ('val', 'test')
        ]
    return options


def metrics(work_dir, mode):
    """The last evaluation's entries, from the JSON beside the log."""
    if mode == 'test':
        (log,) = sorted(work_dir.glob('2*/2*.json'))
        return json.loads(log.read_text())
    (log,) = sorted(work_dir.glob('2*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if 'backbone/GFLOPs' in line][-1]


def figures(entries):
    """What an evaluation found, without the time it took."""
    return {
        key: value
        for key, value in entries.items()
        if key not in ('data_time', 'time', 'step')
    }
