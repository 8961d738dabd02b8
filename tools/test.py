"""Test a checkpoint of mmdet, mmseg or mmpretrain with mmdge's backbones.

Example::

    python tools/test.py CONFIG CHECKPOINT --out predictions.pkl
"""

import argparse
import os
import sys

# Before PyTorch reads it: threads that wait shall not keep the cores that
# another job needs (docs/training.md).
os.environ.setdefault('GOMP_SPINCOUNT', '1000')

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.registry import METRICS

from mmdge.datasets import plain_datasets
from mmdge.evaluation import with_metrics
from mmdge.utils import UserError, checks, launch

# What the hosts' own test.py take where the config has no tta_model.
TTA_MODELS = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmpretrain': dict(type='mmpretrain.AverageClsScoreTTA'),
}


class DumpPredictions(DumpResults):
    """Dump the predictions without what would fill the memory.

    A segmentor's logits are one float map per class: 200 MB for an image of
    ADE20K. Its label map stays, and so do a classifier's scores.
    """

    def process(self, data_batch, predictions) -> None:
        """Keep each prediction but its logits."""
        kept = [
            {k: v for k, v in sample.items() if k != 'seg_logits'}
            for sample in predictions
        ]
        super().process(data_batch, kept)


def parse_args() -> argparse.Namespace:
    parser = launch.build_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='file or address of the weights')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions to this file'
    )
    parser.add_argument(
        '--show-dir', help='draw the predictions and save them in this folder'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: by tta_model and tta_pipeline of the '
        'config; mmdet and mmpretrain do without them, by flipping',
    )
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, not {args.out!r}')
    return args


def show_in(cfg: Config, folder: str) -> None:
    """Turn on the visualization hook, which each host names differently."""
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    kind = checks.type_name(hook)
    folder = os.path.abspath(folder)
    if kind == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder)
    elif kind == 'SegVisualizationHook':
        # Some versions of mmseg would draw one image in 50.
        hook.update(draw=True, interval=1)
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


def augment(cfg: Config) -> None:
    """Test each image in several views, and merge what is predicted."""
    host = launch.host_of(cfg)
    model = cfg.get('tta_model') or TTA_MODELS.get(host)
    if model is None or (
        host not in TTA_MODELS and not cfg.get('tta_pipeline')
    ):
        raise UserError(
            '--tta needs tta_model and tta_pipeline in the config, e.g. '
            "tta_model=dict(type='SegTTAModel'); only for models of mmdet and "
            'mmpretrain can both be left out'
        )
    # What is added here is named as in a config of the host.
    cfg.default_scope = cfg.get('default_scope') or host
    for dataset in plain_datasets(cfg.test_dataloader.dataset):
        own = cfg.get('tta_pipeline')
        dataset['pipeline'] = own or flip(dataset['pipeline'], host)
    cfg.model = ConfigDict(**model, module=cfg.model)


def flip(pipeline: list, host: str) -> list:
    """Show each image as it is and flipped, at the end of a pipeline."""
    pack = dict(pipeline[-1])
    if host == 'mmdet':  # the flip is undone by what the sample says of it
        meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape')
        meta_keys += ('scale_factor', 'flip', 'flip_direction')
        pack = dict(type='mmdet.PackDetInputs', meta_keys=meta_keys)
    views = [dict(type=f'{host}.RandomFlip', prob=p) for p in (0.0, 1.0)]
    return [
        *pipeline[:-1],
        dict(type='TestTimeAug', transforms=[views, [pack]]),
    ]


def dump_to(path: str, host: str | None) -> BaseMetric:
    if host == 'mmdet':  # its own dump packs the masks
        dump = dict(type='mmdet.DumpDetResults', out_file_path=path)
        return METRICS.build(dump)
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
    host = launch.host_of(cfg)
    if args.show_dir:
        show_in(cfg, args.show_dir)
    if args.tta:
        augment(cfg)
    launch.init_cpu_distributed(cfg)
    runner = launch.build_runner(cfg)
    checks.check_classes(runner.test_dataloader.dataset)
    if args.out:
        runner.test_loop.evaluator = with_metrics(
            runner.test_evaluator, dump_to(args.out, host)
        )
    runner.test()


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
