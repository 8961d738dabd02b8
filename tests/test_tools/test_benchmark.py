"""The benchmark through its command line, on tiny backbones."""

import copy
import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdge.models import DGEPVT, DGEDeiT, DGEPVTv2
from mmdge.utils import timing
from tests import small
from tests.tool_runs import (
    ROOT,
    SHAPES,
    data_options,
    error_in,
    functions_of,
)

TOOL = 'tools/analysis_tools/benchmark.py'
CONFIG = SHAPES['mmdet']
DEIT = 'configs/shapes/retinanet_dge-deit_simplefpn_shapes.py'
PVT_SIZES = {
    'model.backbone.arch.embed_dims': (16, 32, 64, 128),
    'model.backbone.arch.num_layers': (1, 1, 1, 1),
}
PVT_OPTIONS = [
    f'{key}={value}'.replace(' ', '') for key, value in PVT_SIZES.items()
]
SMALL = ['--size', '64x64', '--repeats', '2']


BENCH = functions_of(TOOL)


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


def check_setting(setting):
    dense, *_ = setting['rows']
    assert dense['kind'] == 'dense' and dense['time_ratio'] == 1
    for row in setting['rows']:
        check_figures(row, dense)
        assert row['memory'] > 0
        number = setting['batch_size']
        assert row['images_per_second'] * row['median'] == pytest.approx(
            number
        )


@pytest.mark.parametrize(
    ('config', 'options', 'host'),
    [(CONFIG, PVT_OPTIONS, "mmdet's own"), (DEIT, (), "mmpretrain's own")],
)
def test_inference(tool, tmp_path, config, options, host):
    said, found = benchmark(
        tool, tmp_path, config, '--size', '64x64', '96x64', '--batch-size',
        2, '--repeats', 2, '--ratio', 0.6, options=options,
    )  # fmt: skip
    assert found['environment']['torch'] == torch.__version__
    assert [s['size'] for s in found['settings']] == [[64, 64], [96, 64]]
    for setting in found['settings']:
        check_setting(setting)
        rows = {row['name']: row for row in setting['rows']}
        assert list(rows) == [
            'dense twin', host, 'random 0.6', 'variance 0.6', 'uniform 0.6',
            'smaller 0.6',
        ]  # fmt: skip
        assert rows[host]['flops'] == rows['dense twin']['flops']
        for routed in ('random 0.6', 'uniform 0.6'):
            found_ratio = rows[routed]['flops_ratio']
            assert found_ratio == pytest.approx(0.6, abs=0.2)
        assert rows['smaller 0.6']['flops_ratio'] < 1
        assert any('flash' in k for k in rows['dense twin']['attention'])
        for name in rows:
            assert name in said


@pytest.mark.parametrize(
    ('config', 'options', 'kinds'),
    [
        (
            'configs/shapes/cf-vit_shapes-crops.py',
            ['model.backbone.arch.num_layers=2'],
            ['dense', 'dynamic', 'smaller'],
        ),
        (
            'configs/shapes/retinanet_token-routing-pvtv2_fpn_shapes.py',
            PVT_OPTIONS,
            ['dense', 'host', 'dynamic', 'smaller'],
        ),
        (
            'configs/shapes/dynamic-vit_shapes-crops.py',
            [],
            ['dense', 'host', 'dynamic'],
        ),
    ],
)
def test_other_methods_run_as_they_are(tool, tmp_path, config, options, kinds):
    _, found = benchmark(
        *(tool, tmp_path, config, '--size', '64x64', '--repeats', 1),
        options=options,
    )
    (setting,) = found['settings']
    assert [row['kind'] for row in setting['rows']] == kinds
    assert 'left out, fixed shares: known for DGE alone' in setting['notes']


def test_constant_shapes(tool, tmp_path):
    page = tmp_path / 'page.md'
    _, found = benchmark(
        *(tool, tmp_path, CONFIG, *SMALL, '--markdown', page),
        *('--arms', 'variance', 'constant'),
        options=PVT_OPTIONS,
    )
    (setting,) = found['settings']
    check_setting(setting)
    rows = {row['kind']: row for row in setting['rows']}
    assert list(rows) == ['dense', 'variance', 'constant']
    alike = rows['constant']['flops_ratio']
    assert alike == pytest.approx(rows['variance']['flops_ratio'], abs=0.1)
    title, _, names, _, *lines = page.read_text().splitlines()
    assert title == '64 x 64, batch 1, float32:'
    assert 'time ratio' in names and 'launches' not in names
    assert [line.split(' | ')[0] for line in lines[:3]] == [
        '| dense twin', '| variance 0.45', '| variance 0.45, constant',
    ]  # fmt: skip


def test_what_no_graph_can_hold_is_left_out(monkeypatch):
    """On a CPU, without graphs: which arms run, and what is said."""

    def in_graph(run, x):
        if isinstance(run, DGEPVT) and not run.routers:
            return run
        raise RuntimeError('not permitted\nfor a reason')

    arguments = [TOOL, CONFIG, *SMALL, '--arms', 'constant']
    monkeypatch.setattr(sys, 'argv', arguments)
    monkeypatch.setattr(timing, 'in_graph', in_graph)
    args = BENCH.parse_args()
    args.arms.append('graph')
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.merge_from_dict(PVT_SIZES)
    init_default_scope(cfg.default_scope)
    bench = BENCH.Benchmark(cfg, args)
    arms = list(bench.arms((64, 64), []))
    found = bench.measure(arms, (64, 64), 1, torch.float32)
    assert [row['name'] for row in found['rows']] == [
        'dense twin', 'dense twin, graph', 'variance 0.45, constant',
    ]  # fmt: skip
    assert found['rows'][1]['memory'] is None
    assert bench.refused == ['left out, variance 0.45, graph: not permitted']


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a CPU machine')
def test_everything_on_a_gpu_says_that_there_is_none(tool):
    said = tool('tools/analysis_tools/gpu.py', expect=2)
    assert error_in(said).startswith('PyTorch sees no GPU')


def test_everything_on_a_gpu_asks_for_what_the_benchmark_knows(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for arguments in functions_of('tools/analysis_tools/gpu.py').RUNS.values():
        argv = [TOOL, *map(str, arguments), '--device', 'cuda']
        monkeypatch.setattr(sys, 'argv', argv)
        assert BENCH.parse_args().device == 'cuda'


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
    assert second['flops'] < first['flops'] < 1.05 * dense['flops']
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
    check_setting(setting)
    rows = {row['kind']: row for row in setting['rows']}
    assert list(rows) == ['dense', 'dynamic', 'sparse', 'paper']
    for kind in ('dynamic', 'sparse'):
        assert rows[kind]['flops_ratio'] == pytest.approx(0.6, abs=0.15)
    assert 1.4 < rows['paper']['flops_ratio'] < 2.2  # chosen ones twice
    assert rows['paper']['memory'] > rows['sparse']['memory']


def test_a_config_without_a_scope_whose_types_are_classes(tool, tmp_path):
    path = tmp_path / 'new_style.py'
    path.write_text(
        'from mmdge import DGEPVT\n'
        'default_scope = None\n'
        'model = dict(backbone=dict(type=DGEPVT, arch=dict(\n'
        '    embed_dims=(16, 32, 64, 64), num_layers=(1, 1, 1, 1),\n'
        '    num_heads=(1, 2, 4, 4))))\n'
    )
    _, found = benchmark(tool, tmp_path, path, *SMALL)
    (setting,) = found['settings']
    check_setting(setting)
    assert len(setting['rows']) == 6


def test_half_precision_casts_the_backbone(tool, tmp_path):
    _, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--dtype', 'float32', 'bfloat16',
        '--arms', 'dynamic', '--batch-size', 4, options=PVT_OPTIONS,
    )  # fmt: skip
    full, half = found['settings']
    assert (full['dtype'], half['dtype']) == ('float32', 'bfloat16')
    needed = [s['rows'][0]['memory'] for s in (full, half)]
    assert needed[1] < 0.8 * needed[0]


@pytest.mark.parametrize('off', [0, 0.25])
def test_the_ratio_is_that_of_the_precision(tool, tmp_path, monkeypatch, off,
                                            shapes, random_model):  # fmt: skip
    """A router that a half rounds wrong is shown to spend more."""
    real = DGEPVT.forward

    def forward(self, x):
        outs, more = real(self, x), off * (x.dtype == torch.float16)
        if self.routers:
            spent = self.cost.dynamic + more * self.cost.dense
            self.cost = replace(self.cost, dynamic=spent)
        return outs

    monkeypatch.setattr(DGEPVT, 'forward', forward)
    _, weights = random_model(CONFIG, PVT_SIZES)
    said, found = benchmark(
        tool, tmp_path, CONFIG, weights, *SMALL, '--dtype', 'float16',
        'float32', '--arms', 'dynamic',
        options=[*PVT_OPTIONS, *data_options('mmdet', shapes)],
    )  # fmt: skip
    half, full = ({r['kind']: r for r in s['rows']} for s in found['settings'])
    assert 'dtype_shift' not in full['dynamic']
    assert half['dense']['dtype_shift'] == 0
    assert half['dynamic']['dtype_shift'] == pytest.approx(off, abs=0.02)
    shift = half['dynamic']['flops_ratio'] - full['dynamic']['flops_ratio']
    assert shift == pytest.approx(off, abs=0.02)
    assert f'{half["dynamic"]["dtype_shift"]:+.3f}' in said


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
        '--batch-size', 2, options=PVT_OPTIONS,
    )  # fmt: skip
    rows = {row['kind']: row for row in found['settings'][0]['rows']}
    assert rows['host']['out_of_memory'] and not rows['host']['times']
    assert len(rows['dynamic']['times']) == 2
    assert 'out of memory' in said


def test_a_host_that_is_not_installed_is_left_out(tool, tmp_path, monkeypatch):
    pytest.importorskip('mmdet.models')  # all but its backbones
    monkeypatch.setitem(sys.modules, 'mmdet.models.backbones', None)
    said, found = benchmark(
        tool, tmp_path, CONFIG, *SMALL, '--arms', 'host', options=PVT_OPTIONS
    )
    (setting,) = found['settings']
    assert [row['kind'] for row in setting['rows']] == ['dense']
    assert "left out, the host's own: import of mmdet.models" in said


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--size', '800'], "'800' is no HxW, as 800x1216"),
        (['--ratio', '1.5'], "'1.5' is no ratio of FLOPs"),
        (['--ratio', '0.01'], "budget=0.01 can't be met at 64 x 64"),
        (['--repeats', '0'], "'0' is no positive number"),
        (['--json', 'no/such.json'], '--json no/such.json: there is no such'),
        (['--price', '1'], '--price shifts a trained router: give a check'),
        (['w.pth', '--ratio', '.4'], '--ratio is for random routing'),
        (['--train', '--scope', 'model'], 'leave out the checkpoint and'),
        (
            ['--train', '--arms', 'host'],
            '--arms: host not, only dynamic, sparse',
        ),
        (['--device', 'cpu', '--arms', 'graph'], 'a backbone on a GPU'),
        (['none.pth'], 'checkpoint not found'),
        (
            ['--size', '64x64', '--cfg-options', 'model.backbone.type=ResNet'],
            'has no dynamic backbone',
        ),
    ],
)
def test_mistakes_are_named(tool, arguments, message):
    options = [] if '--size' in arguments else ['--size', '64x64']
    said = tool(TOOL, CONFIG, *arguments, *options, expect=2)
    assert message in said.replace('\n', ' ') and 'Traceback' not in said


PVT = dict(
    type='mmdge.DGEPVT',
    arch=dict(
        embed_dims=(16, 32, 80, 128),
        num_layers=(1, 2, 3, 1),
        num_heads=(1, 2, 5, 8),
    ),
)
DEIT = dict(
    type='mmdge.DGEDeiT',
    arch=dict(
        embed_dims=128,
        num_layers=6,
        num_heads=4,
        feedforward_channels=384,
    ),
)
SWIN = dict(type='mmdge.DGESwin', arch=small.SWIN, window_size=4)
CONVNEXT = dict(type='mmdge.DGEConvNeXt', arch=small.CONVNEXT)
SIZE = (64, 96)


@pytest.mark.parametrize(
    ('config', 'changes'),
    [
        (PVT, dict()),
        (PVT, dict(out_indices=(0, 2), in_channels=4)),
        (PVT, dict(pretrain_img_size=250)),
        (DEIT, dict()),
        (DEIT, dict(out_indices=(1, 3), patch_size=8)),
        (
            dict(DEIT, type='mmdge.DGEViT'),
            dict(ffn_type='swiglu_fused', layer_scale_init_value=1.0),
        ),
        (DEIT, dict(distilled=True, out_type='cls_token')),
        (DEIT, dict(final_norm=False, pretrain_img_size=100)),
        (dict(PVT, type='mmdge.DGEPVTv2'), dict(out_indices=(0, 3))),
        (SWIN, dict(out_indices=(0, 1))),
        (CONVNEXT, dict(out_indices=(1, 2), layer_scale_init_value=0.5)),
    ],
)
def test_the_hosts_own_gives_the_same_and_costs_the_same(config, changes):
    twin = MODELS.build(dict(config, routing='finest', **changes)).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    name, host = BENCH.host_backbone(twin)
    assert name in type(host).__module__
    for path, norm in host.named_modules():
        # mmdet gives all norms one eps; the official code, and ours, 1e-5.
        if name == 'mmdet' and re.fullmatch(
            r'.*\d\.0\.norm|.*attn\.norm', path
        ):
            norm.eps = 1e-5
    x = torch.rand(2, twin.in_channels, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            tuple(host(x)), twin(x), atol=1e-4, rtol=1e-4
        )
    flops = BENCH.count_flops(copy.deepcopy(host).to('meta'), SIZE)
    assert flops == twin.cost.dense[0]


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (DGEPVT('tiny', routing='finest', with_cls_token=True), 'cls_token'),
        (
            DGEPVT(
                dict(
                    num_layers=(1, 1, 1, 1),
                    embed_dims=(8, 8, 8, 8),
                    num_heads=(1, 2, 1, 1),
                ),
                routing='finest',
            ),
            'heads of several widths',
        ),
        (
            DGEPVTv2('b0', routing='finest', out_indices=(0, 1)),
            "mmdet's PVTv2 has all stages",
        ),
        (small.dpvt('finest'), 'no host has one like DGEDPVT'),
        (
            small.dynamic_lvvit(routing='finest'),
            'no host has one like DynamicLVViT',
        ),
        (torch.nn.Linear(1, 1), 'no host has one like Linear'),
    ],
)
def test_what_the_host_does_not_have(backbone, message):
    with pytest.raises(ValueError, match=message):
        BENCH.host_backbone(backbone)


@pytest.mark.parametrize(
    ('config', 'size', 'ratio'),
    [
        (dict(type='mmdge.DGEPVT', arch='small'), (800, 1216), 0.45),
        (dict(type='mmdge.DGEPVT', arch='tiny'), (256, 256), 0.6),
        (dict(type='mmdge.DGEDeiT', arch='small'), (512, 512), 0.4),
        (dict(type='mmdge.DGEDeiT', frozen_stages=9), (64, 64), 0.3),
    ],
)
def test_a_smaller_one_has_the_flops_asked_for(config, size, ratio):
    with torch.device('meta'):
        full = MODELS.build(dict(config, routing='finest'))
        small = MODELS.build(BENCH.smaller_backbone(config, ratio, size))
    assert type(small) is type(full)
    found = BENCH.count_flops(small, size) / BENCH.count_flops(full, size)
    assert found == pytest.approx(ratio, rel=0.06)
    if isinstance(full, DGEPVT):
        for key in ('num_layers', 'embed_dims'):
            pairs = zip(small.arch[key], full.arch[key], strict=True)
            assert all(1 <= a <= b for a, b in pairs)
        heads = zip(
            small.arch['embed_dims'], small.arch['num_heads'], strict=True
        )
        assert all(dims % (8 * n) == 0 for dims, n in heads)
    else:
        expansions = [
            model.arch['feedforward_channels'] / model.arch['embed_dims']
            for model in (small, full)
        ]
        assert expansions[0] == expansions[1]


def test_outputs_move_with_the_depth():
    config = dict(type='mmdge.DGEDeiT', arch='tiny', out_indices=(5, 11))
    small = DGEDeiT(
        **{
            key: value
            for key, value in BENCH.smaller_backbone(config, 0.3, SIZE).items()
            if key != 'type'
        }
    )
    assert len(small.out_indices) == 2
    assert small.out_indices[-1] == len(small.blocks) - 1
