"""Run the study: train, evaluate, and note one row per figure.

What is noted already isn't run again, so that it can be interrupted, and
spread over many sittings and machines. Rows are JSON lines::

    python projects/study/run.py --settings shapes-box --seeds 0 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import product
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import get_git_hash
from plan import (
    ALSO,
    FROZEN,
    ROOT,
    SEEDS,
    SETTINGS,
    STUDY,
    Arm,
    Setting,
    route,
    schedule,
)
from rows import ROWS, Rows

from mmdge.utils import UserError, launch
from mmdge.utils.arguments import positive

KEPT = (
    'coco/bbox_mAP',
    'coco/bbox_mAP_50',
    'coco/bbox_mAP_s',
    'coco/bbox_mAP_m',
    'coco/bbox_mAP_l',
    'coco/Platelets_precision',
    'coco/segm_mAP',
    'mIoU',
    'aAcc',
    'mIoU_edges',
    'mIoU_thin',
    'IoU_pole',
    'IoU_sign',
    'IoU_pedestrian',
    'backbone/GFLOPs',
    'backbone/GFLOPs_p95',
    'backbone/GFLOPs_dense',
    'backbone/FLOPs_ratio',
    'backbone/FLOPs_ratio_std',
    'backbone/region_spread',
    'content/objects_corr',
    'content/area_corr',
    'content/edges_corr',
    'content/classes_corr',
)
DIGITS = 5


class Chain:
    """All runs of one setting and seed, which follow from one another.

    Args:
        setting (Setting): Task and data.
        seed (int): Of everything that is random.
        folder (Path): For all that is written.
        threads (int): Of the CPU.
        options (list[str]): ``KEY=VALUE`` for every config.
    """

    def __init__(
        self,
        setting: Setting,
        seed: int,
        folder: Path,
        threads: int,
        options: list[str],
    ) -> None:
        self.setting, self.seed = setting, seed
        self.folder = folder / setting.name / f'seed{seed}'
        self.threads, self.options = threads, options
        self.seconds = None

    def tool(self, name: str, *arguments: object) -> None:
        """Run one of mmdge's tools, its output in ``tools.log``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A whole path stays as it is.
        command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / name]
        command += [*arguments]
        if self.options:
            command += ['--cfg-options', *self.options]
        log = self.folder / 'tools.log'
        with log.open('a') as file:
            print('$', *command, file=file, flush=True)
            done = subprocess.run(
                [str(part) for part in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_NUM_THREADS=str(self.threads)),
            )
        if done.returncode:
            raise UserError(f'{name} failed, see the end of {log}')

    def write(self, cfg: Config, name: str) -> Path:
        """Write the config of a run, with its seed and the code's commit."""
        path = self.folder / f'{name}.py'
        if path.with_suffix('').exists():
            return path  # begun with what it says
        cfg.randomness = dict(seed=self.seed)
        cfg.default_hooks.checkpoint.max_keep_ckpts = 1
        cfg.commit = get_git_hash(digits=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(path)
        return path

    def train(self, config: Path) -> Path:
        """Train, or go on where it was interrupted; return the weights."""
        folder = config.with_suffix('')
        begun, start = folder.exists(), time.time()
        backbone = Config.fromfile(config).model.backbone
        kept = self.setting.frozen and backbone.routing == 'finest'
        tool = STUDY / 'train_head.py' if kept else 'train.py'
        self.tool(tool, config, '--work-dir', folder, '--resume')
        self.seconds = None if begun else round(time.time() - start)
        return Path((folder / 'last_checkpoint').read_text())

    def finished(self, name: str) -> Path | None:
        """Weights of a training that came to its end."""
        mark = self.folder / name / 'last_checkpoint'
        if not mark.exists():
            return None
        cfg = Config.fromfile(self.folder / f'{name}.py')
        weights = Path(mark.read_text())
        last = f'epoch_{cfg.train_cfg.max_epochs}.pth'
        return weights if weights.name == last else None

    def start(self, phase: str) -> tuple[str, Path]:
        """Name and weights of the dense model that arms start from.

        It is trained once, on this machine if its row came from another.
        """
        self.seconds, cfg = None, self.setting.load()
        if phase == 'scratch':
            name, dense = 'scratch-dense-1', Arm('dense', phase, budget=None)
            route(cfg, self.setting, dense)
            schedule(cfg, dense, None)
        else:
            name = 'static'
            cfg.train_cfg.val_begin = cfg.train_cfg.max_epochs + 1
        weights = self.finished(name)
        return name, weights or self.train(self.write(cfg, name))

    def dynamic(self, arm: Arm) -> tuple[Path, Path]:
        """The model it starts from, routed by error, without training."""
        folder = f'dynamic-{arm.budget:g}'
        also = ALSO if arm.name == 'error-many' else ()
        if also:
            folder += '-many'
        if arm.phase == 'scratch':
            folder = f'scratch-{folder}'
        config, weights = self.start(arm.phase)
        stem = self.folder / folder / f'{config}_dynamic-{arm.budget:g}'
        path = stem.with_name(f'{stem.name}.py')
        if not path.exists():
            self.tool(
                'analysis_tools/make_dynamic.py',
                self.folder / f'{config}.py',
                weights,
                *('--ratio', arm.budget, '--out', self.folder / folder),
                *(['--also', *also] if also else []),
            )
        return path, path.with_suffix('.pth')

    def run(self, arm: Arm) -> list[dict]:
        """Train the arm as it wants to be; evaluate it; return the rows."""
        name = f'{arm.phase}-{arm.name}-{arm.budget or 1:g}'
        cfg, weights = self.setting.load(), None
        if arm.calibrated:
            path, weights = self.dynamic(arm)
            cfg = Config.fromfile(path)
        elif arm.phase != 'scratch':
            _, weights = self.start(arm.phase)
        route(cfg, self.setting, arm)
        schedule(cfg, arm, weights)
        config = self.write(cfg, name)
        if arm.trained:
            weights = self.train(config)
        elif arm.name != 'static':
            self.seconds = 0
        return self.evaluate(arm, config, weights)

    def evaluate(self, arm: Arm, config: Path, weights: Path) -> list[dict]:
        """One row for each ratio, and one at no price if asked for."""
        commit = Config.fromfile(config).get('commit')
        ratios = [ratio for ratio in arm.ratios if ratio is not None]
        points = {'priced': ['--ratio', *ratios]} if ratios else {}
        if None in arm.ratios:
            points['own'] = []
        rows = []
        for name, options in points.items():
            folder = config.with_suffix('') / name
            self.tool(
                'analysis_tools/operating_points.py',
                *(config, weights, *options, '--repeats', 0),
                *('--scale', 1, '--method', 'own'),
                *('--num-images', 256, '--out', folder),
            )
            found = json.loads((folder / 'points.json').read_text())
            rows += [
                self.row(arm, found['metric'], point, commit)
                for point in found['points']
            ]
        return rows

    def row(
        self, arm: Arm, metric: str, point: dict, commit: str | None
    ) -> dict:
        """What is kept of an evaluation."""
        metrics = {
            key: round(value, DIGITS)
            for key, value in point['metrics'].items()
            if key in KEPT
        }
        calibrated = point['ratio_calibrated']
        return dict(
            setting=self.setting.name,
            seed=self.seed,
            arm=arm.name,
            phase=arm.phase,
            budget=arm.budget,
            asked=point['ratio_asked'],
            metric=metric,
            # A detector that finds nothing has no AP.
            value=metrics.get(metric, 0.0),
            price=round(point['price'], 6),
            ratio_calibrated=calibrated and round(calibrated, DIGITS),
            metrics=metrics,
            train_seconds=self.seconds,
            commit=commit,
            date=date.today().isoformat(),
            log=point['log'],
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        '--settings',
        nargs='+',
        choices=[*SETTINGS, *FROZEN],
        default=list(SETTINGS),
        help='default: all whose backbone is trained',
    )
    add(
        '--seeds',
        nargs='+',
        type=int,
        default=SEEDS,
        help='default: 0 1 2',
    )
    add(
        '--arms',
        nargs='+',
        metavar='PHASE-NAME',
        help='e.g. finetuned-error (default: all)',
    )
    add('--jobs', type=positive, default=1, help='chains at once (default: 1)')
    add('--threads', type=positive, default=1, help='of a chain (default: 1)')
    add(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/study'),
        help='for all that is written (default: work_dirs/study)',
    )
    add(
        '--rows',
        type=Path,
        default=ROWS,
        help='file of rows to add to (default: that of the page)',
    )
    add(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='entries of every config, for a quick trial',
    )
    args = parser.parse_args()
    if args.cfg_options and args.rows.resolve() == ROWS.resolve():
        parser.error("--cfg-options: a trial's rows need a file: --rows PATH")
    return args


def main() -> None:
    args = parse_args()
    rows = Rows(args.rows)

    failures = []

    def run(task: tuple[bool, int, str]) -> None:
        scratch, seed, name = task
        chain = Chain(
            {**SETTINGS, **FROZEN}[name],
            seed,
            args.work_dir.absolute(),
            args.threads,
            args.cfg_options,
        )
        for arm in chain.setting.arms:
            wanted = not args.arms or str(arm) in args.arms
            wanted = wanted and (arm.phase == 'scratch') == scratch
            if not wanted or rows.have(name, seed, arm):
                continue
            label = f'{name} seed {seed}: {arm}'
            try:
                rows.add(chain.run(arm))
                print(f'{label} {arm.budget}: noted', flush=True)
            except UserError as error:
                failures.append(f'{label}: {error}')
                print(failures[-1], flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        # What takes longest comes last.
        tasks = product((False, True), args.seeds, args.settings)
        list(pool.map(run, tasks))
    if failures:
        raise UserError(f'{len(failures)} failed: ' + '; '.join(failures))


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
