"""Test a file of export_onnx.py by the host's metric, in ONNX Runtime.

It takes the place of what was exported; predictions, post-processing and
metric are the host's, as in tools/test.py.

Example::

    python tools/deployment/test_onnx.py CONFIG CHECKPOINT FILE.onnx
"""

from __future__ import annotations

import argparse
import copy
import sys

from mmdge.deployment import (
    OnnxSession,
    RawOutputs,
    digest,
    replace_part,
    set_form,
)
from mmdge.utils import UserError, checks, launch
from mmdge.utils.arguments import positive
from mmdge.utils.tables import print_table


def parse_args() -> argparse.Namespace:
    parser = launch.config_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='the one that was exported')
    parser.add_argument('onnx', help='file of export_onnx.py')
    parser.add_argument(
        '--threads', type=positive, help='of ONNX Runtime (default: its own)'
    )
    parser.add_argument(
        '--compare',
        action='store_true',
        help='test the same part in PyTorch, too, in the same form',
    )
    parser.add_argument('--work-dir', help='folder for the logs')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args.config, args.cfg_options, args.work_dir)
    checks.check_checkpoint(args.checkpoint)
    checks.check_datasets(cfg, ['test'])
    session = OnnxSession(args.onnx, args.threads)
    cfg.load_from, cfg.resume = args.checkpoint, False
    # A file doesn't tell which cells got what.
    launch.replace_hooks(cfg, 'GranularityVisHook')
    runner = launch.build_runner(cfg)
    checks.check_classes(runner.test_dataloader.dataset)
    runner.load_or_resume()
    model, told = runner.model, session.told
    if digest(model) != told.weights:
        raise UserError(
            f'{args.onnx} was not exported from {args.checkpoint} with this '
            'config; name both, and --cfg-options, as they were then'
        )
    reference = copy.deepcopy(model) if args.compare else None
    replace_part(model, session, session.names, told)
    found = runner.test()
    if reference is None:
        return
    set_form(reference.backbone, told)
    with_flops = told.form == 'adaptive' or told.size is None
    raw = RawOutputs(reference.eval(), told.scope, with_flops)
    replace_part(model, raw, session.names, told)
    expected = runner.test()
    print_table(
        f'{args.onnx}: {told.form}',
        ('metric', 'ONNX Runtime', 'PyTorch'),
        [
            (name, str(found[name]), str(expected[name]))
            for name in found
            if not name.startswith('backbone/') or name.endswith('GFLOPs')
        ],
    )


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
