"""Put runs, sweeps and studies on one HTML page.

It shows tables, curves, accuracy against cost, granularity maps, and the
lines of the logs behind the numbers; it needs no server and no network. Unit:
1 GFLOPs = 1e9 multiply-adds, of convolutions, linear layers and both
attention products.

Example::

    python tools/analysis_tools/report.py work_dirs --out report.html
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from mmdge.report import build_page, collect
from mmdge.utils import UserError, checks, launch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'work_dirs',
        nargs='+',
        metavar='WORK_DIR',
        help='a work dir, or a folder that holds several at any depth',
    )
    parser.add_argument(
        '--out',
        default='report.html',
        help='the page (default: report.html)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    checks.check_output(args.out, '--out')
    found = collect(args.work_dirs)
    page = build_page(found, f'{datetime.now():%Y-%m-%d %H:%M}')
    try:
        Path(args.out).write_text(page, encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'--out {args.out} cannot be written: {error.strerror}'
        ) from error
    for problem in found.problems:
        print(f'not shown: {problem}')
    print(f'wrote {args.out}, {len(page.encode()) / 1e6:.1f} MB')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
