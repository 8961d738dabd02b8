"""The report of a training, a test and a sweep that really ran."""

import re
from html import unescape

import pytest

from tests.forked import forked
from tests.html_page import Page
from tests.tool_runs import SHAPES, data_options, metrics

TOOL = 'tools/analysis_tools/report.py'


@pytest.mark.slow
def test_real_runs_are_reported(shapes, tool, tmp_path):
    runs = tmp_path / 'runs'
    options = [
        '--cfg-options',
        *data_options('mmdet', shapes),
        'model.backbone.arch.num_layers=(1,1,1,1)',
        'model.test_cfg.score_thr=0.001',
        'train_dataloader.batch_size=4',
        'train_cfg.max_epochs=2',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
    ]
    config = SHAPES['mmdet']
    forked('tools/train.py', config, '--work-dir', runs / 'train', *options)
    weights = [config, runs / 'train' / 'epoch_2.pth']
    forked('tools/test.py', *weights, '--work-dir', runs / 'test', *options)
    sweep = ['--price', 0, 0.5, '--repeats', 1, '--num-timed', 1]
    forked(
        'tools/analysis_tools/sweep_budget.py',
        *(*weights, *sweep, '--out', runs / 'sweep', *options),
    )

    out = tmp_path / 'report.html'
    said = tool(TOOL, runs, '--out', out)
    assert f'wrote {out}' in said and 'not shown' not in said
    content = out.read_text()
    page = Page(content)
    page.check()
    rows = re.findall('<td>([^<]+)<br><small>([^<]+)</small></td>', content)
    assert [name for name, _ in rows[::2]] == [
        *('runs/test', 'runs/train', 'runs/sweep')
    ]
    assert {stem for _, stem in rows[::2]} == {'retinanet_dge-pvt_fpn_shapes'}
    assert [kind for kind, _ in rows[1::2]] == ['test', 'training', 'sweep']
    captions = {img['alt'] for img in page.all('img')}
    assert 'runs/test, test' in captions
    labels = [svg['aria-label'] for svg in page.all('svg')]
    assert {'loss over iterations', 'FLOPs ratio over iterations'} < {*labels}
    assert any(label.endswith('against ms per image') for label in labels)

    # Each line is that of the log, and says the number that leads to it.
    (log,) = (runs / 'train').glob('2*/2*.log')
    for found in re.findall('<pre>(.*?)</pre>', content, re.DOTALL)[1:3]:
        assert unescape(found) in log.read_text().split('\n')
    ratio = metrics(runs / 'train', 'val')['backbone/FLOPs_ratio']
    anchors = re.findall(f'<a href="#(line-[0-9]+)">{ratio:.3f}</a>', content)
    said = [page.texts[anchor] for anchor in anchors]
    assert any('Epoch(val) [2]' in text for text in said)
    assert all(f'backbone/FLOPs_ratio: {ratio:.4f}' in text for text in said)


def test_what_is_asked_wrongly_is_said_in_a_sentence(tool, tmp_path):
    said = tool(TOOL, tmp_path, '--out', tmp_path / 'a.html', expect=2)
    assert f'error: nothing to report in {tmp_path}' in said
    said = tool(TOOL, tmp_path / 'gone', '--out', tmp_path / 'a', expect=2)
    assert 'is no folder' in said
    said = tool(TOOL, tmp_path, '--out', tmp_path / 'gone/a', expect=2)
    assert 'there is no such folder' in said
    (tmp_path / 'rows.jsonl').write_text(
        '{"setting": "a", "arm": "b", "metric": "mIoU", "value": 1}\n'
    )
    said = tool(TOOL, tmp_path, '--out', tmp_path, expect=2)
    assert 'cannot be written: Is a directory' in said
