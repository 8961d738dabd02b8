"""Run the tests in every environment that mmdge should work in.

Each is a virtual environment of its own, built with pip from the entries
below; what was built or tested already is taken up again. It takes about half
an hour per environment on two cores, and 7 GB on disk::

    make test-matrix
    python tests/matrix/run.py --only open-mmlab --pytest-args='-k routing'
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TESTS = ('pytest==9.2.0', 'pytest-xdist==3.8.0', 'hypothesis>=6.100')
PINNED = ('-r', str(ROOT / 'requirements.txt'))
# mmcv asks for opencv-python, which needs libGL; both write the folder cv2.
HEADLESS = ('--force-reinstall', '--no-deps', 'opencv-python-headless=={}')
# Prints the versions of what is there.
VERSIONS = """
import importlib, json, sys, numpy, torch, torchvision
found = dict(torch=torch.__version__, torchvision=torchvision.__version__,
             numpy=numpy.__version__)
import mmdge
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
    found[name] = importlib.import_module(name).__version__
importlib.import_module('mmcv._ext')
compiled = getattr(sys.modules['mmcv._ext'], '__file__', None)
found['ops'] = 'compiled' if compiled else 'fallback'
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        what (str): For the table.
        installs (tuple): The arguments of each ``pip install``, in order.
        variables (dict): Of the shell, while installing.
    """

    what: str
    installs: tuple[tuple[str, ...], ...]
    variables: dict[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    'pinned': Environment(
        'what requirements.txt pins',
        (PINNED, tuple(part.format('4.12.0.88') for part in HEADLESS)),
    ),
    'open-mmlab': Environment(
        "open-mmlab's own distributions, mmcv as pure Python",
        (
            ('torch==2.11.0', 'torchvision==0.26.0', 'numpy==1.26.4'),
            # mmcv's setup needs pkg_resources, as does mmengine at run time.
            ('setuptools<81',),
            (
                *('mmcv==2.1.0', '--build-constraint'),
                str(Path(__file__).with_name('setuptools.txt')),
            ),
            (
                *('mmengine==0.10.7', 'mmdet==3.3.0'),
                *('mmsegmentation==1.2.2', 'mmpretrain==1.2.0'),
                # What these need and don't ask for.
                *('ftfy', 'regex', 'pycocotools==2.0.11', 'matplotlib<3.12'),
                *('numpy==1.26.4', 'opencv-python==4.11.0.86', *TESTS),
            ),
            tuple(part.format('4.11.0.86') for part in HEADLESS),
        ),
    ),
    'newest-torch': Environment(
        'the pinned packages with the newest torch',
        (
            PINNED,
            ('--upgrade', 'torch', 'torchvision'),
            tuple(part.format('4.12.0.88') for part in HEADLESS),
        ),
    ),
    'compiled-mmcv': Environment(
        'the pinned packages, mmcv with its compiled ops',
        (
            PINNED,
            ('setuptools>=77,<81', 'wheel', 'ninja'),
            (
                *('--no-build-isolation', '--no-deps', '--force-reinstall'),
                # A wheel that pip built before may have been without ops.
                *('--no-cache-dir', '--no-binary=onedl-mmcv'),
                'onedl-mmcv==2.3.6',
            ),
            tuple(part.format('4.12.0.88') for part in HEADLESS),
        ),
        dict(MMCV_WITH_OPS='1'),
    ),
}


class Run:
    """One environment: its folder, and what happens in it.

    Args:
        name (str): Of the environment.
        folder (Path): For the environment, its logs and its result.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.environment = ENVIRONMENTS[name]
        self.folder = folder / name
        self.python = self.folder / 'venv' / 'bin' / 'python'

    def log(self, name: str, *command: object, **variables: str) -> int:
        """Run a command, its output in a log; return its exit code."""
        with (self.folder / f'{name}.log').open('a') as file:
            print('$', *command, file=file, flush=True)
            return subprocess.run(
                [str(part) for part in command],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
            ).returncode

    def build(self, base: str) -> str | None:
        """Build the environment, unless it is there; say what fails."""
        done = self.folder / 'built'
        recipe = repr(self.environment) + (ROOT / PINNED[1]).read_text()
        if done.exists() and done.read_text() == recipe:
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        venv = self.folder / 'venv'
        if self.log('build', base, '-m', 'venv', venv):
            return 'no virtual environment could be made'
        variables = self.environment.variables
        pip = (self.python, '-m', 'pip', 'install')
        for arguments in (('-U', 'pip'), *self.environment.installs):
            if self.log('build', *pip, *arguments, **variables):
                return f'pip install {" ".join(arguments)} failed'
        done.write_text(recipe)
        return None

    def test(self, jobs: int, pytest_args: list[str]) -> dict:
        """Run the tests; return counts and the first failures."""
        told = subprocess.run(
            [self.python, '-c', VERSIONS],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if told.returncode:
            lines = told.stderr.strip().splitlines()
            return dict(failure=lines[-1] if lines else 'python died')
        versions = json.loads(told.stdout.splitlines()[-1])
        report = self.folder / 'tests.xml'
        report.unlink(missing_ok=True)
        code = self.log(
            'tests',
            *(self.python, '-m', 'pytest', '-n', jobs, '--dist', 'loadfile'),
            *('--no-loadscope-reorder', '-q', f'--junit-xml={report}'),
            *pytest_args,
            OMP_NUM_THREADS='1',
            # For the processes that tools start.
            PYTHONPATH=str(ROOT),
        )
        result = read_report(report) if report.exists() else {}
        # 0: all passed, 1: some failed; others: it did not get so far.
        if code not in (0, 1) or not result.get('passed'):
            return dict(failure=f'nothing passed, see {self.folder}/tests.log')
        return dict(versions=versions, **result)


def git(*command: str) -> str:
    """What git says, nothing where there is none."""
    return subprocess.run(
        ['git', *command], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def read_report(path: Path) -> dict:
    """Counts, and the names of what failed, of a JUnit report."""
    (suite,) = ElementTree.parse(path).getroot().iter('testsuite')
    count = {
        key: int(suite.get(key))
        for key in ('tests', 'failures', 'errors', 'skipped')
    }
    failed = [
        f'{case.get("classname")}::{case.get("name")}'
        for case in suite.iter('testcase')
        if case.find('failure') is not None or case.find('error') is not None
    ]
    wrong = count['failures'] + count['errors']
    return dict(
        passed=count['tests'] - wrong - count['skipped'],
        failed=wrong,
        skipped=count['skipped'],
        minutes=round(float(suite.get('time')) / 60, 1),
        failures=failed,
    )


def table(results: dict[str, dict]) -> str:
    """One line per environment, in Markdown."""
    head = ('environment', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
    head += ('mmpretrain', 'ops', 'passed', 'failed', 'skipped', 'minutes')
    lines = [head, ['---'] * len(head)]
    for name, result in results.items():
        if 'failure' in result:
            lines.append([name, result['failure'], *[''] * (len(head) - 2)])
            continue
        cells = {**result['versions'], **result}
        lines.append([name, *(str(cells[key]) for key in head[1:])])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--only', nargs='+', choices=ENVIRONMENTS, help='default: all')
    add('--python', default=sys.executable, help='of which to make them')
    add('--jobs', type=int, default=2, help='test processes (default: 2)')
    add('--again', action='store_true', help='test what was tested, too')
    add(
        '--work-dir',
        type=Path,
        default=ROOT / 'work_dirs' / 'matrix',
        help='7 GB per environment (default: work_dirs/matrix)',
    )
    add('--pytest-args', default='', help="e.g. --pytest-args='-k routing'")
    args = parser.parse_args()
    results = {}
    for name in args.only or ENVIRONMENTS:
        run = Run(name, args.work_dir.absolute())
        note = run.folder / 'result.json'
        # Of this code, committed or not, and of these tests?
        tested = [git('rev-parse', 'HEAD'), git('diff', 'HEAD')]
        tested += [git('status', '--porcelain'), args.pytest_args]
        if note.exists() and not args.again:
            result = json.loads(note.read_text())
            if result['tested'] == tested:
                results[name] = result
                continue
        print(f'{name}: {run.environment.what} ...', flush=True)
        failure = run.build(args.python)
        if failure:
            result = dict(failure=f'{failure}, see {run.folder}/build.log')
        else:
            result = run.test(args.jobs, args.pytest_args.split())
        run.folder.mkdir(parents=True, exist_ok=True)
        results[name] = dict(result, tested=tested)
        note.write_text(json.dumps(results[name], indent=1))
        for failed in results[name].get('failures', []):
            print(f'  failed: {failed}')
    print(table(results))
    return any('failure' in r or r['failed'] for r in results.values())


if __name__ == '__main__':
    sys.exit(main())
