"""The page shows what was found, needs nothing else, and runs nothing."""

import base64
import re

import cv2
import numpy as np
import pytest

from mmdge.report import build_page, collect
from tests.html_page import Page
from tests.report_files import (
    STAMP,
    study_row,
    write_rows,
    write_sweep,
    write_training,
)

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&$x_1$'


def page_of(*folders):
    content = build_page(collect(folders), 'today')
    page = Page(content)
    page.check()
    return page, content


@pytest.fixture
def everything(training):
    """A training, a sweep and a study of two arms with two seeds each."""
    write_sweep(training / 'sweep')
    rows = [
        study_row(0.25, arm='error', seed=0),
        study_row(0.75, arm='error', seed=1),
        study_row(0.125, arm='error', seed=0, asked=0.3, ratio=0.3),
        study_row(0.875, arm='static', phase='static', budget=None, ratio=1),
    ]
    write_rows(training / 'rows.jsonl', rows)
    return training


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


def test_every_kind_has_its_row(everything):
    _, content = page_of(everything)
    training, sweep, study = cells(content, 'overview')
    assert training == [
        *('runs/train  mine', 'training  2026-01-02 03:04', 'coco/bbox_mAP'),
        *('0.5', '1', '1.5', '0.500', '0.100', '0.300'),
    ]
    assert sweep[3:6] == ['0.25 – 0.5', '0.75 – 1', '1.12 – 1.5']
    assert study[3:6] == ['0.125 – 0.875', '0.6 – 2', '0.9 – 3']


def test_a_number_leads_to_the_line_it_comes_from(everything):
    page, content = page_of(everything)
    (anchor,) = re.findall(r'<a href="#(line-\d+)">0.25</a> <a', content)
    text = page.texts[anchor]
    assert text.startswith('line 4') and 'Epoch(val) [1][10/10]' in text
    assert 'coco/bbox_mAP: 0.2500' in text
    assert f'runs/train/{STAMP}/{STAMP}.log' in page.text


def test_seeds_are_averaged_but_ratios_are_not(everything):
    _, content = page_of(everything)
    error, at_less, static = cells(content, 'studies')
    assert error[:2] == ['error', 'finetuned'] and error[-1] == '0   1'
    assert error[2:6] == ['0.5', '–', '0.5', '0.25 – 0.75']
    assert at_less[2:6] == ['0.5', '0.3', '0.125', '0.125']
    assert static[6:9] == ['1.000', '2', '3']


def test_each_checkpoint_of_a_study_has_its_line(training):
    rows = [
        study_row(0.25, asked=0.35, ratio=0.35),
        study_row(0.5, asked=0.5),
        study_row(0.3, budget=0.35, asked=0.35, ratio=0.35),
        study_row(12, phase='time', metric='ms'),
        study_row(11, phase='time', metric='ms', asked=0.35),
    ]
    write_rows(training / 'rows.jsonl', rows)
    page, content = page_of(training)
    for name in ('error, finetuned, for 0.5', 'error, finetuned, for 0.35'):
        assert content.count(f'</span> {name}</li>') == 1
    assert not any('ms, box' in svg['aria-label'] for svg in page.all('svg'))


def test_names_may_hold_anything(training):
    odd = r'data\shapes <b> "1" \g<1> & $x$'
    rows = [study_row(r, setting=odd, asked=r, ratio=r) for r in (0.2, 0.5)]
    write_rows(training / 'rows.jsonl', rows)
    page, _ = page_of(training)
    assert any(odd in svg['aria-label'] for svg in page.all('svg'))


def test_a_sweep_is_drawn_against_flops_and_time(everything):
    page, _ = page_of(everything)
    assert [svg['aria-label'] for svg in page.all('svg')] == [
        'coco/bbox_mAP against GFLOPs, mean over the images',
        'coco/bbox_mAP, box against GFLOPs, mean over the images',
        'coco/bbox_mAP against ms per image',
        'loss over iterations',
        'FLOPs ratio over iterations',
        'learning rate over iterations',
        'coco/bbox_mAP over iterations',
    ]


def test_colours_follow_the_scheme(everything):
    _, content = page_of(everything)
    svgs = ''.join(re.findall('<svg.*?</svg>', content, re.DOTALL))
    assert 'stroke: currentColor' in svgs and 'fill: currentColor' in svgs
    used = set(re.findall(r'var\((--series-\d)\)', content))
    light, dark = content.split('@media (prefers-color-scheme: dark)')
    for name in used:
        assert f'{name}: #' in light
        assert f'{name}: #' in dark
    # White grounds or black ink would not be seen in one of the schemes.
    assert not re.findall(r'#(?:000000|ffffff|0[0-9a-f]0[0-9a-f]..)\b', svgs)


def test_the_same_input_gives_the_same_page(everything):
    _, first = page_of(everything)
    _, second = page_of(everything)
    assert first == second


def test_pictures_are_small_and_the_newest(tmp_path):
    run = write_training(tmp_path / 'runs', values=[0.1] * 10)
    (run / 'vis_data/vis_image/granularity_180.png').write_bytes(b'no picture')
    page, _ = page_of(tmp_path / 'runs')
    captions = [img['alt'] for img in page.all('img')]
    shown = [60, 80, 100, 120, 140, 160, 200]
    assert captions == [f'runs, iteration {step}' for step in shown]
    assert 'granularity_180.png: no picture that can be read' in page.text
    data = page.all('img')[0]['src'].removeprefix('data:image/jpeg;base64,')
    pixels = np.frombuffer(base64.b64decode(data), np.uint8)
    assert cv2.imdecode(pixels, cv2.IMREAD_COLOR).shape == (60, 800, 3)


def test_nothing_of_a_file_becomes_markup(tmp_path):
    name = HOSTILE.replace('/', ':')
    write_training(tmp_path / name / 'run')
    row = study_row(0.5, setting=HOSTILE, arm=HOSTILE, metric=HOSTILE)
    rows = [dict(row, log=HOSTILE, seed=HOSTILE), dict(row, phase=HOSTILE)]
    write_rows(tmp_path / name / 'rows.jsonl', rows)
    write_sweep(tmp_path / name / 'sweep', config=HOSTILE)
    page, _ = page_of(tmp_path / name)
    assert page.text.count(HOSTILE) > 10
    assert len(page.all('img')) == 2  # the granularity maps


def test_figures_that_are_none_do_no_harm(tmp_path):
    values = [float('nan'), float('inf'), 1e308, -1e308]
    run = write_training(tmp_path / 'run', values=values)
    scalars = run / 'vis_data' / 'scalars.json'
    lines = scalars.read_text().replace('"loss": 0.1', '"loss": 1e999')
    lines += '{"iter": 1e5, "loss": NaN, "lr": "x", "flops_ratio": Infinity}\n'
    lines += f'{{"iter": {10**400}, "loss": null}}\n'
    scalars.write_text(lines)
    write_rows(tmp_path / 'rows.jsonl', [study_row(v) for v in values])
    write_rows(
        tmp_path / 'more.jsonl',
        [study_row(0.5, metrics=None, budget='x', asked=[], seed=None)],
    )
    page, _ = page_of(tmp_path)
    assert np.isin(['nan', 'inf', '1e+308'], page.text.split()).all()


def test_what_is_absent_is_not_shown(tmp_path):
    write_rows(tmp_path / 'rows.jsonl', [study_row(0.5, metrics={})])
    page, content = page_of(tmp_path)
    assert not page.all('svg') and 'Trainings' not in page.text
    (row,) = cells(content, 'overview')
    assert row[3:5] == ['0.5', '–']
