"""All methods side by side: their maps compared, their page from rows."""

import re
import sys

import numpy as np
import pytest
import torch

from mmdge.models.cost import ComputeMap
from mmdge.utils import UserError
from tests.tool_runs import ROOT

STUDY = ROOT / 'projects/study'


@pytest.fixture
def methods():
    yield __import__('methods')
    for name in ('methods', 'methods_page', 'render', 'points', 'run'):
        sys.modules.pop(name, None)
    for name in ('plan', 'rows'):
        sys.modules.pop(name, None)


def test_decisions_of_any_cell_are_brought_to_one_grid(methods):
    """Also where a cell is cut off by the border, or missing there."""
    fine = torch.zeros(1, 6, 4)  # cells of 4 pixels
    fine[0, :2, :2] = 1
    coarse = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    whole = ComputeMap(torch.ones(1, 1, 1), 24)  # says nothing of where
    maps = ComputeMap(fine, 4), ComputeMap(coarse, 16), whole
    (found,) = methods.compute_map(maps, (24, 16))
    # 3 x 2 cells of 8 pixels; the coarse map's right half is cut off.
    assert found.tolist() == [[1, 0.5], [0.5, 0.5], [0, 0]]
    short = ComputeMap(torch.tensor([[[0.5], [1.0]]]), 8)
    (found,) = methods.compute_map([short], (24, 16))
    assert found.tolist() == [[0.5, 0.5], [1, 1], [1, 1]]


def test_agreement_is_that_of_ranks_inside_images(methods):
    one = np.array([[[0.1, 0.2], [0.3, 0.9]]] * 3)
    other = one.copy()
    other[0] = other[0] ** 3  # another scale
    other[1] *= -1
    other[2] = 0.5
    assert methods.agreement(one, other) == pytest.approx([1, -1, 0])


def test_what_objects_get(methods):
    maps = np.full((2, 2, 2), 0.2)
    maps[0, 0, 0] = 0.8
    boxes = [np.array([[0.0, 0, 8, 8], [2, 2, 8, 8]]), np.zeros((0, 4))]
    assert methods.on_objects(maps, boxes) == pytest.approx(4)
    boxes[0] = np.array([[0, 0, 16, 8]])
    assert methods.on_objects(maps, boxes) == pytest.approx(2.5)


def test_the_plan(methods, tmp_path):
    arms = [(arm.family, arm.name) for arm in methods.ARMS]
    assert len(set(arms)) == len(arms)
    bench = methods.Bench(tmp_path, methods.Rows(tmp_path / 'rows.jsonl'))
    learned = next(a for a in methods.ARMS if a.name == 'DGE, learned')
    cfg = bench.load(learned.trained.config, learned.trained.options)
    assert cfg.train_cfg.max_epochs == 2
    assert cfg.default_hooks.cost.budget == methods.RATIO
    with pytest.raises(UserError, match='epoch_2.pth is missing'):
        bench.measure(learned)
    folder = tmp_path / 'retinanet_pvt_fpn_shapes'
    folder.mkdir()
    (folder / 'epoch_6.pth').touch()
    assert bench.weights(learned.trained.start).parent == folder


@pytest.mark.skipif(
    not (STUDY / 'methods.jsonl').exists(), reason='no rows were measured yet'
)
def test_the_page_is_that_of_the_rows(methods):
    from methods_page import Methods
    from render import fill

    page = (STUDY / 'methods.md').read_text()
    template = (STUDY / 'methods.md.j2').read_text()
    assert fill(template, Methods(methods.Rows(methods.ROWS))) == page
    for line in page.split('\n'):
        assert len(line) <= 250 or line.startswith('|')
    for link in re.findall(r'\]\((?!https?:)([^)#]+)', page):
        assert (STUDY / link).exists(), link


def test_a_table_for_each_family_and_a_line_for_each_arm(methods):
    from methods_page import Methods, draw_maps
    from render import fill

    def row(phase, arm, value, metric='coco/bbox_mAP', **entries):
        head = dict(setting='PVT', seed=0, phase=phase, arm=arm)
        return head | dict(metric=metric, value=value) | entries

    def spent(gflops, **more):
        names = 'GFLOPs', 'backbone/GFLOPs', 'backbone/GFLOPs_std'
        return dict.fromkeys(names, gflops) | more

    routed = {'backbone/FLOPs_ratio': 0.6, 'agreement': 0.9}
    page = Methods(
        [
            row('methods', 'static', 0.9, metrics=spent(2.0)),
            row('methods', methods.ERROR, 0.89, metrics=spent(1.0, **routed)),
            *(
                row(
                    *('time', 'static', 3.0, 'ms'),
                    metrics=dict(lower=2.5, upper=3.5, whole_of_static=1.0),
                    **dict(device='a CPU', timed=[3, 2, 1]),
                ),
                row('training', 'retinanet_pvt_fpn_shapes', 0.5, minutes=9),
            ),
        ]
    )
    template = (STUDY / 'methods.md.j2').read_text()
    text = fill(template, page)
    assert '| static | - | 90.0 |' in text and '## DeiT' not in text
    assert '| 3.00 (2.50-3.50) | 1.00 | - |' in text and 'a CPU' in text
    assert f'| PVT | {methods.ERROR} | 0.60 | 0.90 | - | - |' in text
    assert '| PVT | static | 0.500 | 1.00 | 9.0 |' in text
    (panel,) = page.plots('ms')
    assert list(panel.series) == ['static']  # the others were not timed
    (panel,) = page.plots('flops')
    assert panel.series[methods.ERROR][0].tolist() == [[1] * 3, [89] * 3]
    prose = re.sub(r'{{.*?}}|```.*?```', '', template, flags=re.DOTALL)
    assert not re.search(r'\d\.\d', prose), 'figures come from the rows'
    image = np.zeros((16, 16, 3), np.uint8)
    columns = {
        f'{name}\n{n}': np.ones((1, 2, 2)) for name in 'ab' for n in range(6)
    }
    figure = draw_maps([image], columns)
    # Two blocks, each with the image before its maps.
    drawn = [len(axis.images) for axis in figure.axes]
    assert drawn.count(2) == 12 and drawn.count(1) == 2
