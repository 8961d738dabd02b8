"""Test a checkpoint of mmdet, mmseg or mmpretrain with mmdge's backbones.

Example::

    python tools/test.py CONFIG CHECKPOINT --out predictions.pkl
"""

import argparse
import os
import sys

from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.registry import METRICS

import mmdge  # noqa: F401  registers the backbones before a config asks
from mmdge.utils import UserError, checks, launch


class DumpPredictions(DumpResults):
    """Dump the predictions without what would fill the memory.

    A segmentor's logits are one float map per class: 200 MB for an image of
    ADE20K. Its label map stays, and so do a classifier's scores.
    """

    def process(self, data_batch, predictions) -> None:
        """Keep each prediction but its logits."""
        super().process(
            data_batch,
            [
                {k: v for k, v in sample.items() if k != 'seg_logits'}
                for sample in predictions
            ],
        )


def parse_args() -> argparse.Namespace:
    parser = launch.build_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='file or address of the weights')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions to this file'
    )
    parser.add_argument(
        '--show-dir', help='draw the predictions and save them in this folder'
    )
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, not {args.out!r}')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def show_in(cfg: Config, folder: str) -> None:
    """Turn on the visualization hook, which each host names differently."""
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    kind = str(hook.get('type')).rsplit('.', 1)[-1]
    folder = os.path.abspath(folder)
    if kind == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder)
    elif kind == 'SegVisualizationHook':
        hook.update(draw=True)
        if cfg.get('visualizer') is None:
            cfg.visualizer = dict(type='SegLocalVisualizer')
        cfg.visualizer.setdefault(
            'vis_backends', [dict(type='LocalVisBackend')]
        )
        cfg.visualizer.save_dir = folder
    elif kind == 'VisualizationHook':
        hook.update(enable=True, interval=1, out_dir=folder)
    else:
        raise UserError(
            '--show-dir needs a visualization hook in default_hooks, e.g. '
            "visualization=dict(type='mmdet.DetVisualizationHook'); the "
            f'config has {kind}'
        )


def dump_to(path: str, scope: str | None) -> BaseMetric:
    if scope == 'mmdet':  # its own dump packs the masks
        return METRICS.build(
            dict(type='mmdet.DumpDetResults', out_file_path=path)
        )
    return DumpPredictions(out_file_path=path)


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(
        args.config, args.cfg_options, args.work_dir, args.launcher
    )
    cfg.load_from, cfg.resume = args.checkpoint, False
    # The checkpoint replaces init_cfg, which a test never loads.
    checks.check_checkpoint(cfg.load_from)
    checks.check_datasets(cfg, ('test',))
    if args.show_dir:
        show_in(cfg, args.show_dir)
    launch.init_cpu_distributed(cfg)
    runner = launch.build_runner(cfg)
    if args.out:
        metrics = runner.test_evaluator.metrics
        metrics.append(dump_to(args.out, cfg.get('default_scope')))
    runner.test()


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
