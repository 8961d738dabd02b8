"""The metric beside the task's."""

import numpy as np
import pytest

from mmdge import BackboneFLOPs


def sample(dynamic, dense, spread=0.2):
    cost = dict(dynamic=dynamic, dense=dense, region_spread=spread)
    return dict(backbone_cost=cost)


def test_distribution_over_all_images():
    metric = BackboneFLOPs()
    dynamic = np.linspace(1e9, 3e9, 21)
    for value in dynamic:
        metric.process({}, [sample(value, 4e9)])
    result = metric.evaluate(size=21)
    assert result['backbone/GFLOPs'] == pytest.approx(2)
    assert result['backbone/GFLOPs_std'] == pytest.approx(dynamic.std() / 1e9)
    assert result['backbone/GFLOPs_p5'] == pytest.approx(1.1)
    assert result['backbone/GFLOPs_p95'] == pytest.approx(2.9)
    assert result['backbone/GFLOPs_dense'] == pytest.approx(4)
    assert result['backbone/FLOPs_ratio'] == pytest.approx(0.5)
    assert result['backbone/FLOPs_ratio_p95'] == pytest.approx(2.9 / 4)
    assert result['backbone/region_spread'] == pytest.approx(0.2)


def test_images_of_another_size_have_their_own_dense():
    metric = BackboneFLOPs()
    metric.process({}, [sample(1e9, 2e9), sample(1e9, 10e9)])
    result = metric.evaluate(size=2)
    assert result['backbone/FLOPs_ratio'] == pytest.approx((0.5 + 0.1) / 2)


def test_a_missing_hook_is_named():
    with pytest.raises(ValueError, match='add .*mmdge.CostHook'):
        BackboneFLOPs().process({}, [dict(img_id=1)])


def test_an_empty_set_is_named():
    with pytest.raises(ValueError, match='saw no image'):
        BackboneFLOPs().compute_metrics([])
