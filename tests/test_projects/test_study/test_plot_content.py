"""From the annotations of a run to a picture, as the page says."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from tests.tool_runs import (
    ON_CPU,
    ROOT,
    SHAPES,
    data_options,
    functions_of,
    metrics,
    run,
)

TOOL = 'projects/study/plot_content.py'


@pytest.fixture
def written(tmp_path):
    """A function that writes rows into a file."""

    def write(rows, name='content.json'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
        return path

    return write


@pytest.fixture
def config(tmp_path):
    """The config of the page, anywhere; it writes content.json beside it."""
    pages = '\n'.join(p.read_text() for p in (ROOT / 'docs').glob('*.md'))
    blocks = re.findall(r'```python\n(.*?)```', pages, re.S)
    (text,) = [block for block in blocks if 'RatioByContent' in block]
    text = text.replace("'configs/", f"'{ROOT}/configs/")
    text = text.replace('content.json', str(tmp_path / 'content.json'))
    path = tmp_path / 'content.py'
    path.write_text(text)
    return path


def random_weights(config, path):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.save(MODELS.build(cfg.model).state_dict(), path)
    return path


@pytest.mark.parametrize('host', SHAPES)
def test_from_a_checkpoint_to_a_picture(tool, host, config, shapes, tmp_path):
    text = config.read_text()
    config.write_text(text.replace(SHAPES['mmseg'], SHAPES[host]))
    weights = random_weights(config, tmp_path / 'any.pth')
    tool(
        *('tools/test.py', config, weights, '--work-dir', tmp_path / 'w'),
        *('--cfg-options', *data_options(host, shapes)),
    )
    rows = json.loads((tmp_path / 'content.json').read_text())
    found = metrics(tmp_path / 'w', 'test')
    assert found['content/ratio_max'] == max(row['ratio'] for row in rows)
    quantities = dict(
        mmdet=['objects', 'area'], mmseg=['edges', 'classes'], mmpretrain=[]
    )[host]
    for row in rows:
        assert list(row) == ['ratio', *quantities]
    for name in quantities:
        assert f'content/{name}_corr' in found
    if host == 'mmdet':
        path = shapes / 'annotations' / 'instances_val.json'
        truth = json.loads(path.read_text())['annotations']
        assert sum(row['objects'] for row in rows) == len(truth)
        areas = [w * h for *_, w, h in (a['bbox'] for a in truth)]
        share = sum(row['area'] for row in rows)
        assert share == pytest.approx(sum(areas) / 128**2)
    out = tmp_path / 'out.png'
    tool(TOOL, tmp_path / 'content.json', '--out', out)
    assert imread(out).std() > 0.01


@pytest.mark.slow
def test_two_processes_write_one_file(config, shapes, tmp_path):
    weights = random_weights(config, tmp_path / 'any.pth')
    run(
        *('bash', 'tools/dist_test.sh', config, weights, 2),
        *('--work-dir', tmp_path / 'w'),
        *('--cfg-options', *data_options('mmseg', shapes)),
        PYTHON=sys.executable,
        **ON_CPU,
    )
    rows = json.loads((tmp_path / 'content.json').read_text())
    truth = [
        len(np.unique(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
        for path in sorted((shapes / 'semantic' / 'val').iterdir())
    ]
    assert [row['classes'] for row in rows] == truth
    assert len(set(truth)) > 1, 'another order is another list'


def test_a_panel_for_each_quantity_and_the_ratio():
    files = dict(
        boxes=[dict(ratio=r, objects=n) for r, n in ((0.2, 1), (0.4, 3))],
        maps=[dict(ratio=r, edges=n) for r, n in ((0.5, 1), (0.4, 3))],
        spread=[dict(ratio=0.5)],
    )
    figure = functions_of(TOOL).draw(files)
    legends = [
        [text.get_text() for text in axis.get_legend().get_texts()]
        for axis in figure.axes
    ]
    assert legends == [
        ['boxes: r = 1.00'],
        ['maps: r = -1.00'],
        ['boxes: mean 0.30', 'maps: mean 0.45', 'spread: mean 0.50'],
    ]
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[1, 0.2], [3, 0.4]]


def test_files_of_one_name_are_told_apart(tool, written, tmp_path):
    paths = [
        written([dict(ratio=0.5)], f'{name}/content.json') for name in 'ab'
    ]
    tool(TOOL, *paths, '--out', tmp_path / 'out.png')
    assert functions_of(TOOL).labels(paths) == [
        'a/content.json',
        'b/content.json',
    ]


@pytest.mark.parametrize(
    'rows', [[], {}, [0.5], [dict(objects=3)], [dict(ratio='half')]]
)
def test_a_file_of_something_else_is_named(tool, written, tmp_path, rows):
    path = written(rows)
    said = tool(TOOL, path, '--out', tmp_path / 'out.png', expect=2)
    assert f'{path} holds no ratios of images' in said


def test_mistakes_are_named(tool, written, tmp_path):
    path = written([dict(ratio=0.5)])
    for arguments, message in (
        (['none.json', '--out', 'out.png'], 'cannot read none.json: No such'),
        ([path, '--out', 'no/out.png'], '--out no/out.png: there is no such'),
        ([path, '--out', tmp_path / 'out.odt'], "'odt' is not supported"),
    ):
        said = tool(TOOL, *arguments, expect=2)
        assert message in said and 'Traceback' not in said
    path.write_bytes(b'\xff\xfe\x00')
    said = tool(TOOL, path, '--out', tmp_path / 'out.png', expect=2)
    assert 'holds no ratios of images' in said
