"""A dynamic point against the smaller input of equal cost."""

import json
import sys

import numpy as np
import pytest


@pytest.fixture
def points(tmp_path, monkeypatch):
    import points

    monkeypatch.setattr(points, 'POINTS', tmp_path)
    record = dict(metric='coco/bbox_mAP', device='a CPU', points=[])
    for scale, method, asked, ap, small, cost in (
        (1.0, 'dense', None, 0.5, 0.3, 10.0),
        (0.7, 'dense', None, 0.4, 0.1, 6.0),
        (0.5, 'dense', None, 0.2, -1.0, 4.0),
        (1.0, 'mixed', 0.5, 0.49, 0.28, 5.0),
        (1.0, 'error', 0.5, 0.48, 0.29, 5.0),
        (1.0, 'mixed-random', 0.5, 0.5, 0.3, 5.0),
        (1.0, 'mixed', 0.35, 0.3, 0.2, 3.5),
    ):
        metrics = {'coco/bbox_mAP': ap, 'coco/bbox_mAP_s': small}
        metrics |= {'backbone/FLOPs_ratio': cost / 10}
        for end in ('', '_p5', '_p95'):
            metrics[f'backbone/GFLOPs{end}'] = cost - 1
        record['points'].append(
            dict(
                scale=scale,
                method=method,
                ratio_asked=asked,
                control=method.endswith('random'),
                value=100 * ap,
                model_GFLOPs=cost,
                metrics=metrics,
                seconds=None,
                seconds_batch=None,
            )
        )
    (tmp_path / 'cells.json').write_text(json.dumps(record))
    yield points
    for name in ('points', 'run', 'plan', 'rows'):
        sys.modules.pop(name, None)


def test_the_smaller_input_of_equal_cost(points):
    table = points.load('cells')
    assert list(table.AP_S[:2]) == [30, 10] and np.isnan(table.AP_S[2])
    for cost, value in ((6, 40), (5, 30), (8, 45)):
        found = points.smaller_input(table, 'value', 'GFLOPs', cost)
        assert found == pytest.approx(value)
    # Cheaper than any that was measured, and not timed.
    assert np.isnan(points.smaller_input(table, 'value', 'GFLOPs', 3.5))
    assert np.isnan(points.smaller_input(table, 'value', 'ms', 5))


def test_the_best_is_no_control_and_of_the_ratio(points):
    best = points.best('cells', 'value')
    assert best.method == 'mixed'
    assert best.lost == pytest.approx(1) and np.isnan(best.ms)
    assert best.GFLOPs == pytest.approx(20)
    assert points.best('cells', 'AP_S').method == 'error'
