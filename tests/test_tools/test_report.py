"""What a report reads of work dirs, and the page that it makes of it."""

import base64
import re

import cv2
import numpy as np
import pytest

from mmdge.utils import UserError
from tests.forked import forked
from tests.html_page import Page
from tests.report_files import (
    STAMP,
    study_row,
    write_points,
    write_rows,
    write_test,
    write_training,
)
from tests.tool_runs import SHAPES, data_options, functions_of, metrics

TOOL = 'tools/analysis_tools/report.py'
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&$x_1$'


@pytest.fixture(scope='module')
def report():
    """The tool's functions."""
    return functions_of(TOOL)


@pytest.fixture
def training(tmp_path):
    """A training in ``tmp_path / 'runs' / 'train'``."""
    write_training(tmp_path / 'runs' / 'train')
    return tmp_path / 'runs'


@pytest.fixture
def everything(training):
    """A training, points and a study of two arms with two seeds each."""
    write_points(training / 'scaled')
    rows = [
        study_row(0.25, arm='error', seed=0),
        study_row(0.75, arm='error', seed=1),
        study_row(0.125, arm='error', seed=0, asked=0.3, ratio=0.3),
        study_row(0.875, arm='static', phase='static', budget=None, ratio=1),
    ]
    write_rows(training / 'rows.jsonl', rows)
    return training


@pytest.fixture
def page_of(report):
    """A function that reports on folders; it returns the page, parsed."""

    def make(*folders):
        rows, problems = report.collect(folders)
        content = report.build_page(rows, problems, 'today')
        page = Page(content)
        page.check()
        return page, content

    return make


def cells(content, section):
    """The rows of the tables of a section, as text."""
    part = content[content.index(f'<section id="{section}">') :]
    part = part[: part.index('</section>')]
    return [
        [
            re.sub('<[^>]*>', ' ', cell).strip()
            for cell in re.findall(r'<td.*?>(.*?)</td>', row)
        ]
        for row in re.findall(r'<tr>(<td.*?)</tr>', part, re.DOTALL)
    ]


def plots(page):
    """What the plots are of, and the text in them."""
    start = 'data:image/svg+xml;base64,'
    return {
        img['alt']: base64.b64decode(img['src'].removeprefix(start)).decode()
        for img in page.all('img')
        if img['src'].startswith(start)
    }


class TestReading:
    def test_a_training(self, report, training):
        rows, problems = report.collect([training])
        assert problems == []
        for row in rows:
            assert (row['kind'], row['name']) == ('training', 'runs/train')
            assert (row['setting'], row['data']) == ('mine', 'data/shapes')
            assert row['date'] == '2026-01-02 03:04'
            assert row['metric'] == 'coco/bbox_mAP'
        first, last = rows
        assert [entry['iter'] for entry in last['training']] == [
            10,
            20,
            30,
            40,
        ]
        assert [row['figures']['step'] for row in rows] == [20, 40]
        assert [row['figures']['coco/bbox_mAP'] for row in rows] == [0.25, 0.5]
        assert (first['quoted'], last['quoted']) == (False, True)
        assert [step for step, _ in last['pictures']] == [20, 40]

    def test_a_training_that_has_just_begun(self, report, page_of, training):
        path = training / 'train' / STAMP / 'vis_data' / 'scalars.json'
        path.write_text('{"loss": 1, "iter": 10}\n{"loss": 1, "it')
        rows, problems = report.collect([training])
        (row,) = rows
        assert row['figures'] == {} and len(row['training']) == 1
        name = f'runs/train/{STAMP}/vis_data/scalars.json'
        assert problems == [f'{name}: no JSON object in line 2']
        _, content = page_of(training)
        assert cells(content, 'overview')[0][2:] == ['–'] * 7

    def test_a_test(self, report, tmp_path):
        write_test(tmp_path / 'test')
        ((row,), _) = report.collect([tmp_path / 'test'])
        assert row['kind'] == 'test'
        assert row['figures']['coco/bbox_mAP'] == 0.2

    def test_runs_of_one_work_dir_differ(self, report, training):
        write_training(training / 'train', stamp='20260203_040506')
        rows, _ = report.collect([training, training / 'train'])
        assert [row['name'] for row in rows[::2]] == [
            f'runs/train/{STAMP}',
            'runs/train/20260203_040506',
        ]
        assert len(rows) == 4

    def test_two_metrics(self, report, page_of, training):
        path = training / 'train' / STAMP / 'vis_data' / 'scalars.json'
        text = path.read_text()
        path.write_text(
            text.replace('"coco/bbox', '"coco/segm_mAP": 0.3, "coco/bbox')
        )
        _, content = page_of(training)
        names = [row[2:4] for row in cells(content, 'overview')]
        assert names == [['coco/segm_mAP', '0.3'], ['coco/bbox_mAP', '0.5']]

    def test_points_swallow_their_own_tests(self, report, tmp_path):
        write_points(tmp_path / 'scaled')
        write_test(
            tmp_path / 'scaled',
            "test_dataloader = dict(dataset=dict(data_root='data/test'))\n",
        )
        rows, problems = report.collect([tmp_path / 'scaled'])
        assert not problems
        assert {(row['kind'], row['data']) for row in rows} == {
            ('points', 'data/test')
        }
        routings = ['error', 'error', 'QuantileRouter', 'QuantileRouter']
        assert [row['routing'] for row in rows] == routings
        assert rows[0]['ms'] == [10, 20, 40]
        assert rows[1]['GFLOPs'] == [0.75] * 3

    def test_points_beside_a_training_leave_it(self, report, training):
        """As if ``--out`` were the training's work dir."""
        write_points(training / 'other')
        (training / 'other/points.json').rename(training / 'train/points.json')
        kinds = {row['kind'] for row in report.collect([training])[0]}
        assert kinds == {'points', 'training'}

    def test_a_copy_of_a_row_is_no_other_seed(self, report, tmp_path):
        rows = [study_row(0.5, date='x'), study_row(0.25, seed=1, date='x')]
        write_rows(tmp_path / 'a.jsonl', rows)
        again = [*rows, study_row(0.5, budget=0.35), study_row(0.1)]
        write_rows(tmp_path / 'b.jsonl', again)
        rows, _ = report.collect([tmp_path])
        found = [
            (r['seed'], r['budget'], r['figures']['coco/bbox_mAP'])
            for r in rows
        ]
        assert found == [
            ('0', '0.5', 0.5),
            ('1', '0.5', 0.25),
            ('0', '0.35', 0.5),
            ('0', '0.5', 0.1),
        ]

    def test_what_is_broken_is_named(self, report, training):
        folder = training / 'train' / STAMP / 'vis_data'
        with (folder / 'scalars.json').open('a') as file:
            file.write('{"loss": 1, "it')  # killed while writing
        (folder / 'config.py').write_text('val_dataloader = dict(')
        (training / 'points.json').write_text('[' * 100_000)
        (training / 'other.jsonl').write_text('{"text": "no row"}\n\xff\n')
        (training / 'folder.jsonl').mkdir()
        empty = training / 'empty' / '20260101_000000'
        empty.mkdir(parents=True)
        (empty / f'{empty.name}.log').write_text('started\n')
        rows, problems = report.collect([training])
        assert len(rows) == 2
        assert problems == [
            f'runs/empty/{empty.name}: a run without any figure',
            'runs/folder.jsonl: cannot be read: Is a directory',
            'runs/other.jsonl: no JSON object with setting, arm, metric, '
            'value in line 1, 2',
            'runs/points.json: no points that have metrics',
            f'runs/train/{STAMP}/vis_data/scalars.json: no JSON object in '
            'line 7',
        ]

    @pytest.mark.parametrize(
        'text', ['[]', '{"points": 3}', '{"points": [{"metrics": [1]}, 2]}']
    )
    def test_no_points(self, report, training, text):
        (training / 'points.json').write_text(text)
        rows, problems = report.collect([training])
        assert len(rows) == 2 and 'no points' in problems[0]

    def test_configs_are_read_and_not_run(self, report, training):
        path = training / 'train' / STAMP / 'vis_data' / 'config.py'
        marker = training / 'ran'
        text = path.read_text()
        path.write_text(f'open({str(marker)!r}, "w")\n{text}x = 1\n')
        rows, _ = report.collect([training])
        assert rows[0]['data'] == 'data/shapes'
        assert not marker.exists()

    def test_nothing_found_says_what_was_looked_for(self, report, tmp_path):
        (tmp_path / 'notes.jsonl').write_text('no row\n')
        with pytest.raises(UserError) as info:
            report.collect([tmp_path])
        said = str(info.value)
        for part in (str(tmp_path), 'points.json', 'no JSON object'):
            assert part in said
        with pytest.raises(UserError, match='is no folder'):
            report.collect([tmp_path / 'notes.jsonl'])


class TestPage:
    def test_every_kind_has_its_row(self, page_of, everything):
        _, content = page_of(everything)
        study, points, training = cells(content, 'overview')
        assert training == [
            *('runs/train  mine', 'training  2026-01-02 03:04'),
            *('coco/bbox_mAP', '0.5', '1', '1.5', '0.500', '0.100', '0.300'),
        ]
        assert points[3:6] == ['0.25 – 0.5', '0.75 – 1', '1.125 – 1.5']
        assert study[3:6] == ['0.125 – 0.875', '0.6 – 2', '0.9 – 3']

    def test_seeds_are_averaged_but_ratios_are_not(self, page_of, everything):
        _, content = page_of(everything)
        rows = cells(content, 'points-and-studies')
        error, at_less, static, point, *_ = rows
        assert error[:4] == ['error', 'finetuned', '0.5', '–']
        assert error[4:7] == ['0.5', '0.25 – 0.75', '–']
        assert error[-1] == '0 1'
        assert at_less[2:6] == ['0.5', '0.3', '0.125', '0.125']
        assert static[7:10] == ['2', '3', '1.000']
        assert point[:5] == ['1', 'error', 'error', '0', '0.5']
        assert point[7].split() == ['20', '10', '–', '40']

    def test_each_checkpoint_of_a_study_has_its_line(self, page_of, training):
        rows = [
            study_row(0.25, asked=0.35, ratio=0.35),
            study_row(0.5, asked=0.5),
            study_row(0.3, budget=0.35, asked=0.35, ratio=0.35),
            study_row(12, phase='time', metric='ms'),
            study_row(11, phase='time', metric='ms', asked=0.35),
        ]
        write_rows(training / 'rows.jsonl', rows)
        page, content = page_of(training)
        for name in ('error, finetuned, 0.5', 'error, finetuned, 0.35'):
            assert content.count(f'</span> {name}</li>') == 1
        assert not any(name.startswith('ms') for name in plots(page))

    def test_rows_may_be_timed(self, page_of, training):
        seconds = dict(lower=0.01, median=0.02, upper=0.04)
        rows = [study_row(v, seed=s, seconds=seconds) for s, v in ((0, 1),)]
        rows += [study_row(0.5, asked=0.3, seconds=seconds)]
        write_rows(training / 'rows.jsonl', rows)
        assert 'coco/bbox_mAP, box over ms, mean over the images' in plots(
            page_of(training)[0]
        )

    def test_points_are_drawn_against_flops_and_time(
        self, page_of, everything
    ):
        page, _ = page_of(everything)
        assert list(plots(page)) == [
            'coco/bbox_mAP, box over GFLOPs, mean over the images',
            'coco/bbox_mAP over GFLOPs, mean over the images',
            'coco/bbox_mAP over ms, mean over the images',
            'loss over iteration',
            'FLOPs ratio over iteration',
            'learning rate over iteration',
            'coco/bbox_mAP over iteration',
        ]

    def test_points_are_means_with_the_range_over_seeds(
        self, report, everything
    ):
        rows, _ = report.collect([everything])
        (box, _) = report.over_cost(rows, 'GFLOPs')
        assert (box.y, box.title) == ('coco/bbox_mAP', 'box')
        first, second = box.series['error, finetuned, 0.5']
        assert first.tolist() == [[1, 1, 1], [0.25, 0.5, 0.75]]
        assert second.tolist() == [[0.6] * 3, [0.125] * 3]
        (plot,) = report.over_cost(rows, 'ms')
        (first, _) = plot.series['runs/scaled, error, scale 1']
        assert first.tolist() == [[10, 20, 40], [0.5] * 3]

    def test_colours_follow_the_scheme(self, page_of, everything):
        _, content = page_of(everything)
        light, dark = content.split('@media (prefers-color-scheme: dark)')
        for name in set(re.findall(r'var\((--[a-z]+)\)', content)):
            assert f'{name}: #' in light
            assert f'{name}: #' in dark.split('</style>')[0]
        assert '.plot, .legend span { filter: invert(1)' in dark

    def test_the_same_input_gives_the_same_page(self, page_of, everything):
        assert page_of(everything)[1] == page_of(everything)[1]

    def test_pictures_are_small_and_the_newest(self, page_of, tmp_path):
        run = write_training(tmp_path / 'runs', values=[0.1] * 10)
        broken = run / 'vis_data/vis_image/granularity_180.png'
        broken.write_bytes(b'no picture')
        page, _ = page_of(tmp_path / 'runs')
        shots = [img for img in page.all('img') if 'jpeg' in img['src'][:20]]
        shown = [60, 80, 100, 120, 140, 160, 200]
        assert [shot['alt'] for shot in shots] == [
            f'runs, iteration {step}' for step in shown
        ]
        assert 'runs, granularity_180.png: no picture' in page.text
        data = shots[0]['src'].removeprefix('data:image/jpeg;base64,')
        pixels = np.frombuffer(base64.b64decode(data), np.uint8)
        assert cv2.imdecode(pixels, cv2.IMREAD_COLOR).shape == (60, 800, 3)

    def test_names_may_hold_anything(self, page_of, training):
        odd = r'_data\shapes <b> "1" \g<1> & $x$'
        rows = [
            study_row(r, setting=odd, metric=odd, arm=odd, asked=r, ratio=r)
            for r in (0.2, 0.5)
        ]
        write_rows(training / 'rows.jsonl', rows)
        drawn = plots(page_of(training)[0])
        (text,) = [svg for name, svg in drawn.items() if odd in name]
        assert '$x$' in text and '<b>' not in text

    def test_nothing_of_a_file_becomes_markup(self, page_of, tmp_path):
        name = HOSTILE.replace('/', ':')
        write_training(tmp_path / name / 'run')
        row = study_row(0.5, setting=HOSTILE, arm=HOSTILE, metric=HOSTILE)
        rows = [dict(row, seed=HOSTILE), dict(row, phase=HOSTILE)]
        write_rows(tmp_path / name / 'rows.jsonl', rows)
        write_points(tmp_path / name / 'scaled', config=HOSTILE)
        page, _ = page_of(tmp_path / name)
        assert page.text.count(HOSTILE) > 8
        drawn = plots(page)
        assert len(page.all('img')) == 2 + len(drawn)  # granularity maps
        assert not any('<script' in svg for svg in drawn.values())

    def test_figures_that_are_none_do_no_harm(self, page_of, tmp_path):
        values = [float('nan'), float('inf'), 1e308, -1e308]
        run = write_training(tmp_path / 'run', values=values)
        scalars = run / 'vis_data' / 'scalars.json'
        lines = scalars.read_text().replace('"loss": 0.1', '"loss": 1e999')
        lines += '{"iter": 1e5, "loss": NaN, "lr": "x", "lr": Infinity}\n'
        lines += f'{{"iter": {10**400}, "loss": null}}\n'
        scalars.write_text(lines)
        write_rows(tmp_path / 'rows.jsonl', [study_row(v) for v in values])
        odd = study_row(0.5, metrics=None, budget='x', asked=[], seed=None)
        write_rows(tmp_path / 'more.jsonl', [odd])
        page, _ = page_of(tmp_path)
        assert np.isin(['nan', 'inf', '1e+308'], page.text.split()).all()

    def test_what_is_absent_is_not_shown(self, page_of, tmp_path):
        write_rows(tmp_path / 'rows.jsonl', [study_row(0.5, metrics={})])
        page, content = page_of(tmp_path)
        assert not page.all('img') and 'Trainings' not in page.text
        (row,) = cells(content, 'overview')
        assert row[3:5] == ['0.5', '–']


@pytest.mark.slow
def test_real_runs_are_reported(shapes, tool, tmp_path):
    runs = tmp_path / 'runs'
    options = [
        '--cfg-options',
        *data_options('mmdet', shapes),
        'default_hooks.granularity.num_images=4',
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
    points = ['--scale', 1, '--repeats', 1, '--num-timed', 1]
    forked(
        'tools/analysis_tools/operating_points.py',
        *(*weights, *points, '--out', runs / 'points', *options),
    )

    out = tmp_path / 'report.html'
    said = tool(TOOL, runs, '--out', out)
    assert f'wrote {out}' in said and 'not shown' not in said
    content = out.read_text()
    page = Page(content)
    page.check()
    points, tested, trained = cells(content, 'overview')
    for row, kind in ((points, 'points'), (tested, 'test')):
        assert row[0].startswith(f'runs/{kind} ')
        assert 'retinanet_dge-pvt_fpn_shapes' in row[0]
        assert row[1].startswith(kind)
    assert trained[0] == 'runs/train  retinanet_dge-pvt_fpn_shapes'
    validated = metrics(runs / 'train', 'val')
    assert trained[3] == f'{validated["coco/bbox_mAP"]:.4g}'
    assert trained[6] == f'{validated["backbone/FLOPs_ratio"]:.3f}'
    captions = {img['alt'] for img in page.all('img')}
    assert 'runs/test, test' in captions
    assert {'loss over iteration', 'FLOPs ratio over iteration'} < captions
    assert any('over ms' in caption for caption in captions)


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
