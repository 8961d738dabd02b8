"""The benchmark through its command line, on tiny backbones."""

import json
import re

import pytest
import torch
from matplotlib.image import imread
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdge.utils import timing
from tests.tool_runs import ROOT, SHAPES, data_options

TOOL = 'tools/analysis_tools/benchmark.py'
CONFIG = SHAPES['mmdet']
DEIT = 'configs/shapes/retinanet_dge-deit_simplefpn_shapes.py'
PVT_OPTIONS = [
    'model.backbone.arch.embed_dims=(16,32,64,128)',
    'model.backbone.arch.num_layers=(1,1,1,1)',
]
SMALL = ['--size', '64x64', '--repeats', '2']


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    """A matrix product that takes no time."""

    def product(device, dtype):
        x = torch.ones(64, 64, device=device, dtype=dtype)
        return (lambda: x @ x), 64**3

    monkeypatch.setattr(timing, 'matrix_product', product)


def benchmark(tool, tmp_path, config, *arguments, options=()):
    """Run the tool; return what it printed, and its JSON."""
    path = tmp_path / 'out.json'
    options = ['--cfg-options', *options] if options else []
    said = tool(TOOL, config, *arguments, '--json', path, *options)
    return said, json.loads(path.read_text())


def check_figures(row, dense):
    """The ratios are those of the row's own figures."""
    assert row['lower'] <= row['median'] <= row['upper']
    assert row['median'] == timing.Quartiles.of(row['times']).median
    in_time = row['median'] / dense['median']
    in_flops = row['flops'] / dense['flops']
    assert row['time_ratio'] == pytest.approx(in_time)
    assert row['flops_ratio'] == pytest.approx(in_flops)
    assert row['gap'] == pytest.approx(in_time - in_flops)
    if in_flops != 1:
        realised = (1 - in_time) / (1 - in_flops)
        assert row['realised_share'] == pytest.approx(realised)


def check_setting(setting, passes=1):
    dense, *_ = setting['rows']
    assert dense['kind'] == 'dense' and dense['time_ratio'] == 1
    for row in setting['rows']:
        check_figures(row, dense)
        assert row['memory'] > 0
        number = setting['batch_size']
        peak = passes * row['flops'] * number / row['median']
        share = peak / setting['peak_flops']
        if row['kind'] == 'paper':  # less is differentiated than computed
            assert share / 3 < row['peak_share'] < share
        else:
            assert row['peak_share'] == pytest.approx(share)
        assert row['images_per_second'] * row['median'] == pytest.approx(
            number
        )


@pytest.mark.parametrize(
    ('config', 'options', 'host'),
    [(CONFIG, PVT_OPTIONS, "mmdet's own"), (DEIT, (), "mmpretrain's own")],
)
def test_inference(tool, tmp_path, config, options, host):
    picture = tmp_path / 'out.png'
    said, found = benchmark(
        tool, tmp_path, config, '--size', '64x64', '96x64', '--batch-size',
        2, '--repeats', 2, '--ratio', 0.6, '--plot', picture,
        options=options,
    )  # fmt: skip
    assert imread(picture).std() > 0.01
    assert found['environment']['torch'] == torch.__version__
    assert [s['size'] for s in found['settings']] == [[64, 64], [96, 64]]
    for setting in found['settings']:
        check_setting(setting)
        rows = {row['name']: row for row in setting['rows']}
        assert list(rows) == [
            'dense twin', host, 'random 0.6', 'variance 0.6', 'smaller 0.6'
        ]  # fmt: skip
        assert rows[host]['flops'] == rows['dense twin']['flops']
        assert rows['random 0.6']['flops_ratio'] == pytest.approx(0.6, abs=0.2)
        assert rows['smaller 0.6']['flops_ratio'] < 1
        assert any('flash' in k for k in rows['dense twin']['attention'])
        assert setting['host_difference'] < 1e-4
        for name in rows:
            assert name in said


@pytest.mark.parametrize('host', list(SHAPES))
def test_whole_models_with_a_checkpoint(tool, tmp_path, host, shapes):
    cfg = Config.fromfile(ROOT / SHAPES[host])
    init_default_scope(cfg.default_scope)
    weights = tmp_path / 'weights.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), weights)
    said, found = benchmark(
        tool, tmp_path, SHAPES[host], weights, *SMALL, '--scope', 'model',
        '--price', 0, 1, options=data_options(host, shapes),
    )  # fmt: skip
    (setting,) = found['settings']
    check_setting(setting)
    dense, *_, first, second = setting['rows']
    assert (first['name'], second['name']) == ('price 0', 'price 1')
    for row in setting['rows']:
        inside = row['backbone']
        check_figures(inside, dense['backbone'])
        for whole, part in zip(row['times'], inside['times'], strict=True):
            assert 0 < part < whole
        assert inside['flops'] < row['flops']
    assert second['backbone']['flops'] < first['backbone']['flops']
    assert 'its backbone' in said
    (note,) = [n for n in setting['notes'] if 'smaller' in n]
    assert 'neck' in note and note in said


def test_the_rest_of_a_model_is_counted(tool, tmp_path):
    """RetinaNet at 64 x 64: neck and head as get_flops.py counts them."""
    from mmdge.utils.counting import flop_counter

    _, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--scope', 'model', '--arms',
        'dynamic',
    )  # fmt: skip
    dense = found['settings'][0]['rows'][0]
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.model.backbone.routing = 'finest'
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad(), flop_counter() as counter:
        model(torch.zeros(1, 3, 64, 64), mode='tensor')
    assert dense['flops'] == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ('config', 'options'), [(CONFIG, PVT_OPTIONS), (DEIT, ())]
)
def test_training(tool, tmp_path, config, options):
    said, found = benchmark(
        tool, tmp_path, config, *SMALL, '--train', '--ratio', 0.6,
        '--batch-size', 8, options=options,
    )  # fmt: skip
    (setting,) = found['settings']
    check_setting(setting, passes=3)
    rows = {row['kind']: row for row in setting['rows']}
    assert list(rows) == ['dense', 'dynamic', 'sparse', 'paper']
    for kind in ('dynamic', 'sparse'):
        assert rows[kind]['flops_ratio'] == pytest.approx(0.6, abs=0.15)
    assert 1.4 < rows['paper']['flops_ratio'] < 2.2  # chosen ones twice
    assert rows['paper']['memory'] > rows['sparse']['memory']


def test_the_profile_names_the_parts_of_the_routing(tool, tmp_path):
    said, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--arms', 'dynamic', '--profile',
        options=PVT_OPTIONS,
    )  # fmt: skip
    (setting,) = found['settings']
    assert setting['profiled'] == 'random 0.45'
    parts = setting['profile']
    assert {'routers.forward'} < set(parts)
    assert 0.01 < sum(parts.values()) < 0.9
    assert re.search(r'% +routers\.forward', said)


def test_half_precision_casts_the_backbone(tool, tmp_path):
    _, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--dtype', 'float32', 'bfloat16',
        '--arms', 'dynamic', '--batch-size', 4, options=PVT_OPTIONS,
    )  # fmt: skip
    full, half = found['settings']
    assert (full['dtype'], half['dtype']) == ('float32', 'bfloat16')
    needed = [s['rows'][0]['memory'] for s in (full, half)]
    assert needed[1] < 0.8 * needed[0]


def test_what_runs_out_of_memory_is_a_row(tool, tmp_path, monkeypatch):
    from mmdet.models.backbones import PyramidVisionTransformer

    def forward(self, x):
        if x.device.type == 'meta' or len(x) == 1:
            return real(self, x)
        raise torch.OutOfMemoryError('too large')

    real = PyramidVisionTransformer.forward
    monkeypatch.setattr(PyramidVisionTransformer, 'forward', forward)
    said, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--arms', 'host', 'dynamic',
        '--batch-size', 2, '--plot', tmp_path / 'out.svg',
        options=PVT_OPTIONS,
    )  # fmt: skip
    rows = {row['kind']: row for row in found['settings'][0]['rows']}
    assert rows['host']['out_of_memory'] and 'times' not in rows['host']
    assert len(rows['dynamic']['times']) == 2
    assert 'out of memory' in said


def test_a_host_that_is_not_installed_is_left_out(tool, tmp_path, monkeypatch):
    from mmdge.benchmark import rivals

    def missing(twin):
        raise ImportError('No module named mmdet')

    monkeypatch.setattr(rivals, '_mmdets_pvt', missing)
    said, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--arms', 'host', options=PVT_OPTIONS
    )
    (setting,) = found['settings']
    assert [row['kind'] for row in setting['rows']] == ['dense']
    assert "left out, the host's own: No module named mmdet" in said


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--size', '800'], "'800' is no HxW, as 800x1216"),
        (['--ratio', '1.5'], "'1.5' is no ratio of FLOPs"),
        (['--ratio', '0.01'], "budget=0.01 can't be met at 64 x 64"),
        (['--repeats', '0'], "'0' is no positive number"),
        (['--json', 'no/such.json'], '--json no/such.json: there is no such'),
        (['--plot', 'such.odt'], '--plot such.odt: its name must end with'),
        (['--price', '1'], '--price shifts a trained router: give a check'),
        (['w.pth', '--ratio', '.4'], '--ratio is for random routing'),
        (['--train', '--scope', 'model'], 'leave out the checkpoint and'),
        (
            ['--train', '--arms', 'host'],
            '--arms: of host only dynamic, sparse',
        ),
        (['none.pth'], 'checkpoint not found'),
        (
            ['--size', '64x64', '--cfg-options', 'model.backbone.type=ResNet'],
            'has no dynamic backbone',
        ),
        (
            [
                '--scope',
                'model',
                '--size',
                '64x64',
                '--cfg-options',
                'default_scope=mmengine',
            ],
            'needs default_scope in',
        ),
    ],
)
def test_mistakes_are_named(tool, arguments, message):
    options = [] if '--size' in arguments else ['--size', '64x64']
    said = tool(TOOL, CONFIG, *arguments, *options, expect=2)
    assert message in said.replace('\n', ' ') and 'Traceback' not in said
