"""What is read of work dirs, sweeps and studies, and what is not."""

import json

import pytest

from mmdge.report import collect
from mmdge.utils import UserError
from tests.report_files import (
    STAMP,
    line,
    metrics,
    study_row,
    write_rows,
    write_sweep,
    write_test,
    write_training,
)


def test_a_training_is_read_with_its_log_lines(training):
    (run,) = collect([training]).runs
    assert (run.name, run.config, run.kind) == (
        'runs/train',
        'mine',
        'training',
    )
    assert (run.date, run.dataset) == ('2026-01-02 03:04', 'data/shapes')
    assert [entry['iter'] for entry in run.training] == [10, 20, 30, 40]
    assert [e.iteration for e in run.evaluations] == [20, 40]
    assert [e.headlines for e in run.evaluations] == [['coco/bbox_mAP']] * 2
    last = run.evaluations[-1]
    assert last.metrics['coco/bbox_mAP'] == 0.5
    assert last.source.path == f'runs/train/{STAMP}/{STAMP}.log'
    assert last.source.place == 'line 6'
    assert last.source.text == line('val', '[2][10/10]', metrics(0.5, 0.5))
    assert [picture.step for picture in run.pictures] == [20, 40]


@pytest.mark.parametrize('lost', ['log', 'scalars'])
def test_either_the_log_or_the_json_is_enough(training, lost):
    folder = training / 'train' / STAMP
    whole = collect([training]).runs[0].evaluations
    path = folder / f'{STAMP}.log'
    (path if lost == 'log' else folder / 'vis_data/scalars.json').unlink()
    (run,) = collect([training]).runs
    assert [e.metrics['coco/bbox_mAP'] for e in run.evaluations] == [
        e.metrics['coco/bbox_mAP'] for e in whole
    ]
    (name,) = {e.source.path for e in run.evaluations}
    assert name.endswith('scalars.json' if lost == 'log' else '.log')


def test_a_test_belongs_to_the_last_line(tmp_path):
    lines = write_test(tmp_path / 'test')
    (run,) = collect([tmp_path / 'test']).runs
    (evaluation,) = run.evaluations
    assert run.kind == 'test'
    assert evaluation.metrics['coco/bbox_mAP'] == 0.2
    assert evaluation.source.text == lines[1]


def test_runs_of_one_work_dir_differ_by_their_date(training):
    write_training(training / 'train', stamp='20260203_040506')
    names = [run.name for run in collect([training, training / 'train']).runs]
    assert names == [
        'runs/train, 2026-01-02 03:04',
        'runs/train, 2026-02-03 04:05',
    ]


def test_a_sweep_swallows_its_own_tests(tmp_path):
    write_sweep(tmp_path / 'sweep')
    write_test(
        tmp_path / 'sweep',
        "test_dataloader = dict(dataset=dict(data_root='data/test'))\n",
    )
    found = collect([tmp_path / 'sweep'])
    (sweep,) = found.sweeps
    assert not found.runs and not found.problems
    assert sweep.dataset == 'data/test'
    routings = ['error', 'error', 'QuantileRouter', 'QuantileRouter']
    assert [point.routing for point in sweep.points] == routings
    assert sweep.points[0].seconds == (0.01, 0.02, 0.04)
    assert sweep.points[1].evaluation.backbone('GFLOPs') == 0.75


def test_a_sweep_beside_a_training_leaves_it(training):
    """As if ``--out`` were the training's work dir."""
    write_sweep(training / 'swept')
    (training / 'swept/sweep.json').rename(training / 'train/sweep.json')
    found = collect([training])
    assert len(found.sweeps) == 1
    assert [run.kind for run in found.runs] == ['training']


def test_a_copy_of_a_row_is_no_other_seed(tmp_path):
    rows = [study_row(0.5), study_row(0.25, seed=1)]
    write_rows(tmp_path / 'a.jsonl', rows)
    again = [*rows, study_row(0.5, budget=0.35), study_row(0.1)]
    write_rows(tmp_path / 'b.jsonl', again)
    found = [(r.seed, r.budget, r.value) for r in collect([tmp_path]).rows]
    assert found == [
        ('0', 0.5, 0.5),
        ('1', 0.5, 0.25),
        ('0', 0.35, 0.5),
        ('0', 0.5, 0.1),
    ]


def test_rows_quote_the_log_or_themselves(tmp_path):
    rows = [study_row(0.5, log='said'), study_row(0.25, seed=1)]
    write_rows(tmp_path / 'rows.jsonl', rows)
    first, second = collect([tmp_path]).rows
    assert first.evaluation.source.text == 'said'
    assert json.loads(second.evaluation.source.text) == rows[1]
    assert (second.evaluation.source.place, second.seed) == ('line 2', '1')


def test_what_is_broken_is_named_and_the_rest_is_read(training):
    folder = training / 'train' / STAMP / 'vis_data'
    with (folder / 'scalars.json').open('a') as file:
        file.write('{"loss": 1, "it')  # killed while writing
    (folder / 'config.py').write_text('val_dataloader = dict(')
    (training / 'sweep.json').write_text('[' * 100_000)
    (training / 'other.jsonl').write_text('{"text": "no row"}\n\xff\n')
    empty = training / 'empty' / '20260101_000000'
    empty.mkdir(parents=True)
    (empty / f'{empty.name}.log').write_text('started\n')
    found = collect([training])
    assert len(found.runs) == 1 and len(found.runs[0].evaluations) == 2
    assert found.problems == [
        f'runs/empty/{empty.name}: a run without any figure',
        'runs/other.jsonl: no JSON object in line 2',
        'runs/other.jsonl: no row of a study (setting, arm, metric, value) '
        'in line 1',
        'runs/sweep.json: no sweep with points that have metrics',
        f'runs/train/{STAMP}/vis_data/scalars.json: no JSON object in line 7',
        f'runs/train/{STAMP}/vis_data/config.py: no config that can be parsed',
    ]


def test_configs_are_read_and_not_run(training):
    path = training / 'train' / STAMP / 'vis_data' / 'config.py'
    marker = training / 'ran'
    path.write_text(f'open({str(marker)!r}, "w")\n' + path.read_text())
    assert collect([training]).runs[0].dataset == 'data/shapes'
    assert not marker.exists()


def test_nothing_found_says_what_was_looked_for(tmp_path):
    (tmp_path / 'notes.jsonl').write_text('no row\n')
    with pytest.raises(UserError) as info:
        collect([tmp_path])
    said = str(info.value)
    for part in (str(tmp_path), 'sweep.json', 'no JSON object in line 1'):
        assert part in said
    with pytest.raises(UserError, match='is no folder'):
        collect([tmp_path / 'notes.jsonl'])
