"""The standard error of a difference over images."""

import json
import re

import numpy as np
import pytest

from tests.tool_runs import functions_of

TOOL = 'projects/study/bootstrap.py'


def test_of_semantic_segmentation():
    """Where there is a formula: IoU of one class, the same area each."""
    bootstrap = functions_of(TOOL)
    rng = np.random.default_rng(0)
    right = rng.integers(40, 60, (2, 200))
    one, other = (
        np.stack([r, 0 * r + 100, r], 1)[..., None] for r in right
    )  # (N, 3, 1): the union is the prediction
    metrics = [bootstrap.miou_of(areas) for areas in (one, other)]
    means = right.mean(1)
    first, second, error = bootstrap.compare(*metrics, 200)
    assert [first, second] == pytest.approx(means)
    gaps = right[0] - right[1]
    assert error == pytest.approx(gaps.std() / 200**0.5, rel=0.1)
    # What is common to both is no uncertainty of their difference.
    assert bootstrap.compare(metrics[0], metrics[0], 200) == (
        *(first, first),
        0,
    )


def test_of_detection(tool, tmp_path):
    """Whole, it is COCO's AP; the table has all sizes."""
    boxes = [[5, 5, 20, 20], [50, 50, 60, 60], [100, 100, 150, 120]]
    truth = dict(
        images=[dict(id=i, width=300, height=300) for i in (1, 2, 5)],
        categories=[dict(id=1, name='cell')],
        annotations=[
            dict(id=10 * i + j, image_id=i, category_id=1, bbox=box)
            | dict(area=box[2] * box[3], iscrowd=0)
            for i in (1, 2, 5)
            for j, box in enumerate(boxes)
        ],
    )
    found = [
        dict(image_id=a['image_id'], category_id=1, bbox=a['bbox'], score=0.9)
        for a in truth['annotations']
    ]
    files = dict(truth=truth, all=found, some=found[1:])  # one small less
    for name, content in files.items():
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    said = tool(
        *(TOOL, tmp_path / 'all.json', tmp_path / 'some.json'),
        *('--ann-file', tmp_path / 'truth.json', '--draws', 50),
    )
    lines = {
        line.split()[1]: re.findall(r'[\d.]+', line)
        for line in said.splitlines()
        if ' AP' in line
    }
    assert lines['AP_m'] == ['100.00', '100.00', '0.00', '0.00']
    whole, less, gap, error = map(float, lines['AP_s'])
    # Two of three are found: of 101 recalls, 67 are reached.
    assert (whole, less) == (100, pytest.approx(100 * 67 / 101, abs=0.01))
    assert gap == pytest.approx(whole - less) and 10 < error < 40
