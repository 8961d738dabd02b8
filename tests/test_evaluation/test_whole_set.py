"""FLOPs of the whole set beside any evaluator, as a config and built."""

import copy

import pytest
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import EVALUATOR, METRICS, init_default_scope
from mmengine.runner import Runner

from mmdge.evaluation import (
    BackboneFLOPs,
    WholeSetEvaluator,
    with_flops,
    with_metrics,
)

FLOPS = dict(type='mmdge.BackboneFLOPs')
ONE, TWO = dict(type='Counted', prefix='a'), dict(type='Counted', prefix='b')
SETS = dict(type='MultiDatasetsEvaluator', dataset_prefixes=['x', 'y'])


@METRICS.register_module()
class Counted(BaseMetric):
    """How many images there were."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(number=len(results))


@EVALUATOR.register_module()
class OfTheFirst(Evaluator):
    """One that evaluates in a way of its own."""

    def evaluate(self, size):
        return self.metrics[0].evaluate(size)


def whole(evaluator):
    return dict(
        type='mmdge.WholeSetEvaluator', metrics=[FLOPS], evaluator=evaluator
    )


@pytest.mark.parametrize(
    ('evaluator', 'expected'),
    [
        (None, None),
        (ONE, [ONE, FLOPS]),
        ([ONE, TWO], [ONE, TWO, FLOPS]),
        ((ONE,), [ONE, FLOPS]),
        ([ONE, FLOPS], [ONE, FLOPS]),
        ([FLOPS, ONE], [FLOPS, ONE]),
        ([dict(type=BackboneFLOPs)], [dict(type=BackboneFLOPs)]),
        (dict(metrics=ONE), dict(metrics=[ONE, FLOPS])),
        (
            dict(type='Evaluator', metrics=[ONE, FLOPS]),
            dict(type='Evaluator', metrics=[ONE, FLOPS]),
        ),
        (
            dict(SETS, metrics=[ONE, TWO]),
            whole(dict(SETS, metrics=[ONE, TWO])),
        ),
        (
            dict(SETS, metrics=[ONE, TWO, FLOPS]),
            whole(dict(SETS, metrics=[ONE, TWO])),
        ),
        (
            dict(SETS, metrics=[FLOPS, TWO, FLOPS]),
            whole(dict(SETS, metrics=[FLOPS, TWO])),
        ),
        (
            whole(dict(SETS, metrics=[ONE, TWO])),
            whole(dict(SETS, metrics=[ONE, TWO])),
        ),
        (
            dict(type='OfTheFirst', metrics=ONE),
            whole(dict(type='OfTheFirst', metrics=[ONE])),
        ),
        # As make_dynamic.py and the documentation once had it.
        (
            [dict(SETS, metrics=[ONE, TWO]), FLOPS],
            whole(dict(SETS, metrics=[ONE, TWO])),
        ),
        ([[ONE, TWO], FLOPS], [ONE, TWO, FLOPS]),
        ([dict(metrics=[ONE]), TWO], dict(metrics=[ONE, TWO, FLOPS])),
    ],
)
def test_every_form_of_a_config(evaluator, expected):
    before = copy.deepcopy(evaluator)
    assert with_metrics(evaluator, FLOPS) == expected
    assert with_metrics(expected, FLOPS) == expected
    assert evaluator == before


def test_what_is_added_unasked_does_without_costs():
    """As of a ``tta_model`` of one's own, whose samples have none."""
    (_, added) = with_flops(ONE)
    assert added == dict(FLOPS, required=False)
    metric = BackboneFLOPs(required=False)
    metric.process(None, [{}])
    assert metric.compute_metrics(metric.results) == {}
    with pytest.raises(ValueError, match='without backbone_cost'):
        BackboneFLOPs().process(None, [{}])


def test_nothing_is_added_unasked():
    for evaluator in ([ONE, TWO], dict(SETS, metrics=[ONE, TWO])):
        assert with_metrics(evaluator) == evaluator
    moved = with_metrics(dict(SETS, metrics=[ONE, TWO, FLOPS]))
    assert moved == whole(dict(SETS, metrics=[ONE, TWO]))


def evaluate(evaluator):
    evaluator.dataset_meta = dict(cumulative_sizes=[1, 3])
    costs = [(2e9, 4e9), (4e9, 4e9), (3e9, 4e9)]
    evaluator.process(
        [
            dict(
                backbone_cost=dict(dynamic=d, dense=s, region_spread=0.0),
                index=number,
            )
            for number, (d, s) in enumerate(costs)
        ]
    )
    return evaluator.evaluate(3)


@pytest.mark.parametrize('built', [True, False])
@pytest.mark.parametrize(
    ('config', 'found'),
    [
        ([ONE], {'a/number': 3}),
        (dict(metrics=[ONE]), {'a/number': 3}),
        (dict(type='OfTheFirst', metrics=[ONE, TWO]), {'a/number': 3}),
        (
            dict(SETS, metrics=[ONE, TWO]),
            {'x/a/number': 1, 'y/b/number': 2},
        ),
        (
            dict(SETS, metrics=[ONE, TWO, FLOPS]),
            {'x/a/number': 1, 'y/b/number': 2},
        ),
    ],
)
def test_what_is_found(config, found, built):
    """The host's own metrics as without, and the FLOPs of all images."""
    init_default_scope('mmdet')
    build = lambda c: Runner.build_evaluator(None, copy.deepcopy(c))  # noqa: E731
    evaluator = (
        with_flops(build(config)) if built else build(with_flops(config))
    )
    metrics = evaluate(evaluator)
    own = {k: v for k, v in metrics.items() if not k.startswith('backbone/')}
    assert own == found
    assert metrics['backbone/GFLOPs'] == pytest.approx(3)
    assert metrics['backbone/FLOPs_ratio'] == pytest.approx(0.75)


def test_the_meta_information_reaches_both():
    init_default_scope('mmdet')
    evaluator = WholeSetEvaluator(FLOPS, dict(metrics=ONE))
    evaluator.dataset_meta = dict(classes=('a',))
    assert evaluator.evaluator.dataset_meta == dict(classes=('a',))
    (metric,) = evaluator.evaluator.metrics
    assert metric.dataset_meta == evaluator.dataset_meta
