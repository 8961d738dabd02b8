"""Prices by calibrate_budget.py; then the ratio, on images it didn't see."""

import re

import pytest
from mmengine.config import Config

from mmdge.datasets import write_shapes
from tests.tool_runs import SHAPES, data_options, metrics

TOOL = 'tools/analysis_tools/calibrate_budget.py'
TEST = 'tools/test.py'
CONFIG = SHAPES['mmseg']
DEPTH = 'model.backbone.arch.num_layers'
SMALL = f'{DEPTH}=(1,1,1,1)'


def rows(said):
    """The lines of the table: asked, ratio, price."""
    found = re.findall(r'│ +(\S+) │ +(\S+) │ +(\S+) │', said)
    return [tuple(map(float, row)) for row in found]


@pytest.fixture
def dynamic(random_model):
    """A function that saves a model with a routing."""

    def save(routing):
        options = {DEPTH: (1, 1, 1, 1), 'model.backbone.routing': routing}
        return random_model(CONFIG, options)[1]

    return save


def ratio_of_a_test(tool, config, weights, work_dir):
    """What the written config spends on its test set."""
    name = f'{work_dir.parent.name}-{work_dir.name}'
    tool(TEST, config, weights, '--work-dir', work_dir, '--cfg-options',
         'test_dataloader.num_workers=0', f'visualizer.name={name}',
         'test_dataloader.persistent_workers=False',
         f'experiment_name={name}')  # fmt: skip
    return metrics(work_dir, 'test')['backbone/FLOPs_ratio']


@pytest.mark.parametrize('routing', ['learned', 'variance', 'random', 'error'])
def test_a_ratio_is_met(tool, tmp_path, shapes, dynamic, routing):
    weights, out = dynamic(routing), tmp_path / 'priced.py'
    options = [*data_options('mmseg', shapes), SMALL,
               f'model.backbone.routing={routing}']  # fmt: skip
    said = tool(TOOL, CONFIG, weights, '--ratio', 0.7, '--split', 'val',
                '--out', out, '--cfg-options', *options)  # fmt: skip
    ((asked, spent, price),) = rows(said)
    assert asked == 0.7 and spent == pytest.approx(0.7, abs=0.02)
    (option,) = re.findall(r'--cfg-options (\S+)', said)
    assert float(option.removeprefix('model.backbone.price=')) == price

    written = Config.fromfile(out)
    assert written.model.backbone.price == pytest.approx(price, rel=1e-4)
    assert written.default_hooks.cost.budget == 0.7  # what is expected of it
    ratio = ratio_of_a_test(tool, out, weights, tmp_path / 'test')
    # Of the same images, but random routing is another each time.
    within = 0.1 if routing == 'random' else 0.001
    assert ratio == pytest.approx(spent, abs=within)


@pytest.mark.slow
@pytest.mark.parametrize('routing', ['variance', 'error'])
def test_a_ratio_is_met_on_other_images(tool, tmp_path, dynamic, routing):
    """Of which some are all detail and others empty, so it takes many."""
    shapes = tmp_path / 'shapes'
    write_shapes(shapes, num_train=64, num_val=64, size=80)
    weights, out = dynamic(routing), tmp_path / 'priced.py'
    options = [*data_options('mmseg', shapes), SMALL,
               f'model.backbone.routing={routing}']  # fmt: skip
    tool(TOOL, CONFIG, weights, '--ratio', 0.7, '--out', out,
         '--cfg-options', *options)  # fmt: skip
    ratio = ratio_of_a_test(tool, out, weights, tmp_path / 'test')
    assert ratio == pytest.approx(0.7, abs=0.05)


def test_several_ratios(tool, shapes, dynamic):
    weights = dynamic('variance')
    options = [*data_options('mmseg', shapes), SMALL]
    said = tool(TOOL, CONFIG, weights, '--ratio', 0.8, 0.6, '--num-images',
                3, '--split', 'val', '--cfg-options', *options)  # fmt: skip
    assert 'On 3 images of the val set' in said
    (more, less) = rows(said)
    assert (more[0], less[0]) == (0.8, 0.6)
    assert more[1] > less[1] and more[2] < less[2]
    options = re.findall(r'backbone.price=(\S+)   # ratio (\S+)', said)
    assert options == [(f'{p:g}', f'{r:g}') for r, _, p in (more, less)]


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        (['--ratio', '1.2'], [], "'1.2' is no ratio of FLOPs, a number"),
        (['--ratio', '0.01'], [], 'ratio=0.01 cannot be met: the backbone sp'),
        (
            ['--ratio', '.5'],
            ['model.backbone.routing=finest'],
            'none of its blocks routes; set model.backbone.routing',
        ),
        (['--ratio', '.5', '.6', '--out', 'a.py'], [], '--out is for a singl'),
        (['--ratio', '.5', '--out', 'no/a.py'], [], 'there is no such folder'),
        (
            ['--ratio', '.5'],
            ['train_dataloader.dataset.data_root=none/'],
            'train data not found',
        ),
        (
            ['--ratio', '.5'],
            [
                'model.backbone._delete_=True',
                'model.backbone.type=mmdet.PyramidVisionTransformer',
                'model.backbone.num_layers=(1,1,1,1)',
            ],
            'calibrate_budget.py needs a dynamic backbone in the model',
        ),
    ],
)
def test_mistakes_are_named(
    tool, shapes, dynamic, tmp_path, monkeypatch, arguments, options, message
):
    weights = dynamic('variance')
    small = [] if 'mmdet' in ''.join(options) else [SMALL]
    options = [*data_options('mmseg', shapes), *small, *options]
    said = tool(TOOL, CONFIG, weights, *arguments, '--cfg-options', *options,
                expect=2)  # fmt: skip
    (error,) = re.findall('error: (.*)', said)
    assert message in error
