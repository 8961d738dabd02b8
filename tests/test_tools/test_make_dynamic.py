"""A static checkpoint made dynamic; then what the last lines say to do."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdge.calibration.adaptation import Adaptation
from mmdge.models.architectures import LAYOUTS
from mmdge.models.weights import from_ours
from mmdge.safe_training import read_checkpoint
from mmdge.utils import launch
from tests.forked import forked
from tests.tool_runs import (
    NO_WORKERS,
    ON_CPU,
    ROOT,
    SHAPES,
    data_options,
    equal,
    metrics,
    own,
)

TOOL = 'tools/analysis_tools/make_dynamic.py'
STATIC = dict(
    mmdet='configs/shapes/retinanet_pvt_fpn_shapes.py',
    mmseg='configs/shapes/fpn_pvt_shapes.py',
    mmpretrain='configs/shapes/pvt_shapes-crops.py',
)
DEIT = 'configs/shapes/retinanet_deit_simplefpn_shapes.py'
# For speed, without a change to the heads.
DEPTH = 'model.backbone.arch.num_layers'
SMALL = {DEPTH: (1, 1, 1, 1)}
FEW = ['--num-images', 6, '--num-fit', 3]
LAYOUT = {(layout.family, layout.name): layout for layout in LAYOUTS}


def make(tool, config, weights, out, options, ratio=0.6, few=FEW):
    """Run the tool; return what it said, and its next commands."""
    depth = 2 if config == DEIT else SMALL[DEPTH]
    said = tool(
        TOOL,
        config,
        weights,
        '--ratio',
        ratio,
        *few,
        '--out',
        out,
        '--cfg-options',
        *options,
        f'{DEPTH}={depth}'.replace(' ', ''),
    )
    commands = re.findall(r'^  python (tools/\S+) ([^#\n]*)', said, re.M)
    return said, {name: rest.split() for name, rest in commands}


def once(work_dir):
    """One iteration, and no run of another's name."""
    return [
        '--cfg-options', 'train_cfg.max_epochs=1',
        'train_cfg.val_interval=9', 'train_dataloader.batch_size=4',
        'train_dataloader.dataset.indices=4',
        *NO_WORKERS,
        f'experiment_name={"-".join(work_dir.parts[-3:])}',
    ]  # fmt: skip


def train_once(tool, command, work_dir):
    """Train one iteration; return the routers' calibration before."""
    tool(
        *('tools/train.py', *command, '--work-dir', work_dir),
        *once(work_dir),
    )
    (trained,) = work_dir.glob('epoch_1.pth')
    return read_checkpoint(trained)['state_dict']


def calibration(state):
    return {
        key.removeprefix('backbone.'): value
        for key, value in state.items()
        if '.router.' in key
    }


@pytest.mark.slow
@pytest.mark.parametrize('host', STATIC)
def test_a_whole_model(tool, tmp_path, shapes, random_model, host):
    model, weights = random_model(STATIC[host], SMALL)
    options = data_options(host, shapes)
    said, commands = make(
        tool, STATIC[host], weights, tmp_path / 'out', options,
        few=['--split', 'val'],
    )  # fmt: skip
    found = re.search(r'Ratio (\S+) on the calibration images', said)
    spent = float(found[1])
    assert spent == pytest.approx(0.6, abs=0.02)

    config, checkpoint = commands['tools/test.py']
    cfg = Config.fromfile(config)
    assert cfg.model.backbone.routing == 'error'
    kinds = [hook.type for hook in launch.hooks_of(cfg)]
    assert len(set(kinds)) == len(kinds)
    cost = dict(type='mmdge.CostHook', budget=0.6, loss_weight=0.0)
    assert cfg.default_hooks.cost == cost
    state = read_checkpoint(checkpoint)['state_dict']
    static = model.state_dict()
    assert all(state[key].equal(value) for key, value in static.items())
    added = {key for key in state if key not in static}
    assert added == {key for key in state if '.router.' in key}

    written = Path(config).read_text()
    assert 'https://' not in written  # all weights are in the checkpoint
    work_dir = tmp_path / 'out/runs'
    tool('tools/test.py', config, checkpoint, *once(work_dir))
    ratio = metrics(work_dir, 'test')['backbone/FLOPs_ratio']
    assert ratio == pytest.approx(spent, abs=0.002)  # of the same images
    # What a run writes of its config, options included, isn't written there.
    assert Path(config).read_text() == written
    trained = train_once(tool, commands['tools/train.py'], tmp_path / 'train')
    for key, value in calibration(trained).items():
        assert value.equal(state[f'backbone.{key}'])


@pytest.mark.parametrize('container', [None, 'model'])
def test_a_backbone_of_deit(tool, tmp_path, shapes, random_model, container):
    model, weights = random_model(DEIT, {DEPTH: 2})
    layout = LAYOUT['ViT', 'official']
    source = DEIT, model, weights
    check_backbone(tool, tmp_path, shapes, source, layout, container)


@pytest.mark.parametrize('name', ['official', 'mmdet'])
def test_a_backbone_of_pvt(tool, tmp_path, shapes, random_model, name):
    config = STATIC['mmseg']
    model, weights = random_model(config, SMALL)
    source = config, model, weights
    check_backbone(tool, tmp_path, shapes, source, LAYOUT['PVT', name])


def check_backbone(tool, tmp_path, shapes, source, layout, container=None):
    config, model, weights = source
    state, _ = from_ours(model.backbone.state_dict(), layout)
    torch.save({container: state} if container else state, weights)
    host = 'mmseg' if config == STATIC['mmseg'] else 'mmdet'
    options = data_options(host, shapes)
    _, commands = make(tool, config, weights, tmp_path / 'out', options)
    assert list(commands) == ['tools/train.py']  # the head is untrained
    (path,) = commands['tools/train.py']
    init = Config.fromfile(path).model.backbone.init_cfg
    made = read_checkpoint(init.checkpoint)['state_dict']
    for key, value in model.backbone.state_dict().items():
        assert made[key].equal(value)
    work_dir = tmp_path / 'train'
    trained = train_once(tool, [path], work_dir)
    assert calibration(trained)
    for key, value in calibration(trained).items():
        assert value.equal(made[key])


@pytest.mark.parametrize(
    ('options', 'blocks'),
    [
        (['model.backbone.granularities=[[1,2,4],[1,2],[1],[1]]'], 2),
        (['model.backbone.granularities=[1,2]'], 4),
    ],
)
def test_other_granularities(
    tool, tmp_path, shapes, random_model, options, blocks
):
    _, weights = random_model(STATIC['mmseg'], SMALL)
    _, commands = make(
        tool, STATIC['mmseg'], weights, tmp_path / 'out',
        [*data_options('mmseg', shapes), *options], ratio=0.8,
    )  # fmt: skip
    command = commands['tools/test.py']
    made = calibration(read_checkpoint(command[1])['state_dict'])
    assert len({key.partition('.router.')[0] for key in made}) == blocks
    work_dir = tmp_path / 'out/runs'
    tool('tools/test.py', *command, *once(work_dir))
    ratio = metrics(work_dir, 'test')['backbone/FLOPs_ratio']
    assert ratio == pytest.approx(0.8, abs=0.1)  # of other images


def test_a_dynamic_config_changes_its_routing(
    tool, tmp_path, shapes, random_model
):
    """And leaves what belonged to the other, or to a calibration before."""
    config = tmp_path / 'mine.py'
    config.write_text(
        f"""_base_ = {str(ROOT / SHAPES['mmseg'])!r}
custom_imports = dict(imports='mmdge', allow_failed_imports=False)
model = dict(
    backbone=dict(routing=('finest', 'variance', 'variance', 'random'))
)
default_hooks = dict(
    price=dict(type='mmdge.RandomPriceHook', prices=[0.0, 5.0])
)
custom_hooks = [
    dict(type='mmdge.RoutingWarmupHook', begin=0.3, end=0.6),
    dict(type='mmdge.GranularityVisHook'),
]
"""
    )
    _, weights = random_model(config, SMALL)
    options = [*data_options('mmseg', shapes), 'model.backbone.price=2.0']
    _, commands = make(tool, config, weights, tmp_path / 'out', options, 0.9)
    cfg = Config.fromfile(commands['tools/test.py'][0])
    assert 'price' not in cfg.model.backbone
    assert cfg.model.backbone.routing == ['finest', 'error', 'error', 'error']
    assert cfg.custom_imports.imports == ['mmdge']
    kinds = [hook.type for hook in cfg.custom_hooks]
    assert kinds == ['mmdge.GranularityVisHook']
    assert not {'price', 'warmup'} & cfg.default_hooks.keys()
    assert cfg.default_hooks.cost.type == 'mmdge.CostHook'
    # Made dynamic again, by a config as older versions wrote it, and this one.
    old = dict(cfg.default_hooks.pop('cost'), budget=0.7)
    cfg.custom_hooks.insert(0, old)
    cfg.dump(tmp_path / 'old.py')
    for again in (tmp_path / 'old.py', tmp_path / 'new/old_dynamic-0.8.py'):
        make(tool, again, weights, tmp_path / 'new', options[:-1], 0.8)
        made = Config.fromfile(tmp_path / f'new/{again.stem}_dynamic-0.8.py')
        kinds = [hook.type for hook in launch.hooks_of(made)]
        assert kinds.count('mmdge.CostHook') == 1
        assert made.default_hooks.cost.budget == 0.8


def test_one_checkpoint_for_many_budgets(tool, tmp_path, shapes, random_model):
    _, weights = random_model(STATIC['mmseg'], SMALL)
    options = data_options('mmseg', shapes)
    said, commands = make(
        tool, STATIC['mmseg'], weights, tmp_path / 'out', options,
        few=['--split', 'val', '--also', 0.5, 0.7],
    )  # fmt: skip
    config, checkpoint = commands['tools/test.py']
    draw = Config.fromfile(config).default_hooks.price
    assert draw.type == 'mmdge.RandomPriceHook'
    none, more, less = draw.prices
    assert less < none == 0 < more
    for price, ratio in ((none, 0.6), (more, 0.5), (less, 0.7)):
        work_dir = tmp_path / f'{ratio}'
        tool('tools/test.py', config, checkpoint, '--work-dir', work_dir,
             *once(work_dir), f'model.backbone.price={price}')  # fmt: skip
        spent = metrics(work_dir, 'test')['backbone/FLOPs_ratio']
        assert spent == pytest.approx(ratio, abs=0.02)


def test_adapted_without_labels(
    tool, tmp_path, shapes, random_model, monkeypatch
):
    """Interrupted, it goes on to the same weights; finished, it is kept."""
    model, weights = random_model(STATIC['mmseg'], SMALL)
    options = [
        *(*data_options('mmseg', shapes), *NO_WORKERS),
        'train_dataloader.batch_size=4',
    ]

    def adapted(folder, iters=4, expect=0, lr=1e-4):
        return tool(TOOL, STATIC['mmseg'], weights, '--ratio', 0.6, *FEW,
                    '--adapt', iters, '--adapt-lr', lr,
                    '--out', tmp_path / folder,
                    '--cfg-options', *options, f'{DEPTH}=(1,1,1,1)',
                    expect=expect)  # fmt: skip

    def made(folder):
        return tmp_path / folder / 'fpn_pvt_shapes_dynamic-0.6.pth'

    assert 'Iter(train) [4/4]' in adapted('whole')
    state = read_checkpoint(made('whole'))['state_dict']
    moved = {
        key.partition('.')[0]
        for key, value in model.state_dict().items()
        if not value.equal(state[key])
    }
    assert moved == {'backbone'}

    forward, calls = Adaptation.forward, []

    def interrupted(self, inputs, mode='loss'):
        calls.append(inputs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, inputs, mode)

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, 'forward', interrupted)
        adapted('cut', expect=130)
        assert not made('cut').exists()
        assert 'Iter(train) [4/4]' in adapted('cut')
    assert len(calls) == 5
    assert equal(read_checkpoint(made('cut'))['state_dict'], state)
    assert 'Iter(train)' not in adapted('cut')
    assert equal(read_checkpoint(made('cut'))['state_dict'], state)
    said = adapted('cut', iters=6, expect=2)
    assert 'adaptation of another iterations; remove it' in said

    # What makes it worse is undone.
    assert 'the adaptation is undone' in adapted('bad', lr=10)
    kept = read_checkpoint(made('bad'))['state_dict']
    assert all(kept[k].equal(v) for k, v in model.state_dict().items())

    # With labels, it goes on learning from the checkpoint that it came from.
    config = made('whole').with_suffix('.py')
    distill = Config.fromfile(config).default_hooks.distill
    assert distill.teacher == str(weights)
    train_once(tool, [config], tmp_path / 'train')
    (log,) = (tmp_path / 'train').glob('2*/*.log')
    assert 'loss_distill_backbone: 0.' in log.read_text()


PURE = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, RetinaHead, RetinaNet
from mmengine.dataset import DefaultSampler
from mmengine.runner import TestLoop, ValLoop

from mmdge import DGEPVT, BackboneFLOPs, CostHook

default_scope = None
custom_hooks = [dict(type=CostHook, budget=0.5, loss_weight=0.0)]
dataset = dict(
    type=CocoDataset,
    metainfo=dict(classes=('rows', 'columns', 'checks', 'rings')),
    data_root={root!r},
    ann_file='annotations/instances_val.json',
    data_prefix=dict(img='val/'),
    test_mode=True,
    pipeline=[
        dict(type=LoadImageFromFile),
        dict(type=Resize, scale=(96, 96)),
        dict(type=PackDetInputs),
    ],
)
val_dataloader = dict(
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dataset,
)
test_dataloader = val_dataloader
test_evaluator = [
    dict(
        type=CocoMetric,
        ann_file={root!r} + '/annotations/instances_val.json',
        metric='bbox',
    ),
    dict(type=BackboneFLOPs),
]
val_evaluator = test_evaluator
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[124] * 3, std=[58] * 3
    ),
    backbone=dict(
        type=DGEPVT,
        arch=dict(
            embed_dims=(16, 32, 64, 64),
            num_layers=(1, 1, 1, 1),
            num_heads=(1, 2, 4, 4),
        ),
        routing='variance',
        out_indices=(1, 2, 3),
    ),
    neck=dict(type=FPN, in_channels=[32, 64, 64], out_channels=8, num_outs=3),
    bbox_head=dict(
        type=RetinaHead,
        num_classes=4,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type='mmdet.AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[1.0],
            strides=[8, 16, 32],
        ),
    ),
    test_cfg=dict(
        nms_pre=100,
        score_thr=0.0,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=10,
    ),
)
"""


def test_fast_paths_to_train_from(tool, tmp_path, shapes, random_model):
    """A static checkpoint in; fast paths like the MLPs, and a teacher, out."""
    name = 'configs/shapes/retinanet_{}swin_fpn_shapes.py'
    small = {
        'model.backbone.arch.depths': (1, 1, 2, 1),
        'model.backbone.arch.embed_dims': 8,
        'model.backbone.arch.num_heads': (1, 1, 1, 1),
        'model.neck.in_channels': [16, 32, 64],
    }
    _, weights = random_model(name.format(''), small)
    small['model.backbone.pruning_loc'] = (0, 1)
    options = [f'{k}={v}'.replace(' ', '') for k, v in small.items()]
    command = TOOL, name.format('dynamic-'), weights, *FEW, '--out', tmp_path
    options = '--cfg-options', *data_options('mmdet', shapes), *options
    for wrong, message in (
        (['--ratio', 0.5, *options], 'keep_ratio in place of --ratio'),
        ([*options, 'model.backbone.frozen_stages=3'], 'keep predictors'),
    ):
        assert message in tool(*command, *wrong, expect=2)
    said = tool(*command, *options)
    shares = re.findall(r'layers.2.blocks.\d: (\d+)% of what varies', said)
    assert len(shares) == 2 and all(int(share) > 20 for share in shares)
    (command,) = re.findall(r'python tools/train.py (\S+)', said)
    cfg = Config.fromfile(command)
    assert cfg.default_hooks.distill.teacher == str(weights)
    assert 0.7 < cfg.default_hooks.cost.budget < 1
    train_once(tool, [command], tmp_path / 'run')


def test_a_config_in_pure_python(tool, tmp_path, shapes):
    """Its types are classes, and it has no default scope."""
    config, weights = tmp_path / 'pure.py', tmp_path / 'pure.pth'
    config.write_text(PURE.replace('{root!r}', repr(str(shapes))))
    model = launch.build_model(launch.load_config(config))
    torch.save(dict(state_dict=model.state_dict()), weights)
    out = tmp_path / 'out'
    tool(TOOL, config, weights, '--ratio', 0.8, *FEW, '--split', 'val',
         '--out', out)  # fmt: skip
    made = out / 'pure_dynamic-0.8.py'
    cfg = Config.fromfile(made)
    assert cfg.model.backbone.routing == 'error' and not cfg.custom_hooks
    tool('tools/test.py', made, made.with_suffix('.pth'), '--tta', '--out',
         tmp_path / 'out.pkl')  # fmt: skip
    found = metrics(out / 'runs', 'test')
    assert found['backbone/FLOPs_ratio'] == pytest.approx(0.8, abs=0.1)
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 5
    for name, *options in (('get_flops',), ('calibrate_budget', '--ratio', 0.8,
                                            '--split', 'val')):  # fmt: skip
        tool(f'tools/analysis_tools/{name}.py', config, weights, *options)


def test_several_sets_are_measured_one_by_one(tool, tmp_path, shapes):
    """And the FLOPs of all, which the host's evaluator passes over."""
    config, weights = tmp_path / 'multi.py', tmp_path / 'multi.pth'
    text = (
        PURE
        + """
far = dict(
    dataset,
    ann_file='annotations/instances_train.json',
    data_prefix=dict(img='train/'),
)
train_dataloader = dict(dataset=far)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
both = dict(type='ConcatDataset', datasets=[dataset, far])
val_dataloader = dict(val_dataloader, dataset=both)
test_dataloader = val_dataloader
test_evaluator = dict(
    type='MultiDatasetsEvaluator',
    dataset_prefixes=['near', 'far'],
    metrics=[
        test_evaluator[0],
        dict(
            test_evaluator[0],
            ann_file={root!r} + '/annotations/instances_train.json',
        ),
        test_evaluator[1],
    ],
)
val_evaluator = test_evaluator
"""
    )
    config.write_text(text.replace('{root!r}', repr(str(shapes))))
    model = launch.build_model(launch.load_config(config))
    torch.save(dict(state_dict=model.state_dict()), weights)
    out = tmp_path / 'out'
    said = tool(TOOL, config, weights, '--ratio', 0.8, '--out', out)
    assert 'looking for the price on 8 images' in said  # of the training
    made = out / 'multi_dynamic-0.8.py'
    tool('tools/test.py', made, made.with_suffix('.pth'))
    found = metrics(out / 'runs', 'test')
    assert {'near/coco/bbox_mAP', 'far/coco/bbox_mAP'} < found.keys()
    assert found['backbone/FLOPs_ratio'] == pytest.approx(0.8, abs=0.1)
    tool('tools/analysis_tools/operating_points.py', config, weights,
         '--scale', 1, '--method', 'own', '--repeats', 0, '--num-timed', 1,
         '--out', tmp_path / 'points')  # fmt: skip
    found = json.loads((tmp_path / 'points/points.json').read_text())
    assert found['metric'] == 'near/coco/bbox_mAP'
    (point,) = found['points']
    assert 0 < point['metrics']['backbone/FLOPs_ratio'] < 1
    assert point['metrics']['content/ratio_max'] <= 1


def test_a_classifiers_backbone(tool, tmp_path, shapes, random_model):
    """It has no head for a segmentor, which is left to be trained."""
    model, weights = random_model(STATIC['mmpretrain'], SMALL)
    options = data_options('mmseg', shapes)
    said, commands = make(
        tool, STATIC['mmseg'], weights, tmp_path / 'out', options
    )
    assert 'the backbone alone is loaded' in said
    assert list(commands) == ['tools/train.py']
    init = Config.fromfile(commands['tools/train.py'][0]).model.backbone
    made = read_checkpoint(init.init_cfg.checkpoint)['state_dict']
    own = model.backbone.state_dict()
    # Positions are those of larger images.
    shared = [key for key in own.keys() & made.keys() if 'pos' not in key]
    assert len(shared) > 50
    assert all(made[key].equal(own[key]) for key in shared)


# The hosts' own files, made narrow and shallow.
NARROW_PYRAMID = {
    'model.backbone.embed_dims': 8,
    'model.backbone.num_layers': [1, 1, 1, 1],
    'model.neck.in_channels': [8, 16, 40, 64],
    'model.neck.out_channels': 8,
    'model.bbox_head.in_channels': 8,
    'model.bbox_head.feat_channels': 8,
    'model.bbox_head.stacked_convs': 1,
    'test_dataloader.dataset.pipeline.1.scale': (320, 192),
    'test_dataloader.dataset.indices': 3,
}
# A host's own config by its family, the data, and what makes it small.
SHIPPED = {
    'mmdet PVT': (
        'pvt/retinanet_pvt-t_fpn_1x_coco.py',
        'data/coco_tiny',
        NARROW_PYRAMID,
    ),
    'mmdet PVTv2': (
        'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py',
        'data/coco_tiny',
        NARROW_PYRAMID,
    ),
    'mmdet Swin': (
        'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        'data/coco_tiny',
        {
            'model.backbone.embed_dims': 32,
            'model.backbone.depths': [1, 1, 2, 1],
            'model.backbone.num_heads': [1, 2, 4, 8],
            'model.neck.in_channels': [32, 64, 128, 256],
            'model.test_cfg.rpn.max_per_img': 20,
            'test_dataloader.dataset.pipeline.1.scale': (320, 192),
            'test_dataloader.dataset.indices': 3,
        },
    ),
    'mmseg ViT': (
        'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
        'data/ade_sample',
        {
            'model.backbone.embed_dims': 24,
            'model.backbone.num_layers': 2,
            'model.backbone.drop_rate': 0.1,
            'model.decode_head.in_channels': 24,
            'model.decode_head.channels': 24,
            'model.decode_head.embed_dims': 24,
            'model.test_cfg.crop_size': (256, 256),
            'model.test_cfg.stride': (240, 240),
            'test_dataloader.dataset.pipeline.1.scale': (512, 256),
        },
    ),
    'mmseg MiT': (
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'data/ade_sample',
        {
            'model.backbone.embed_dims': 8,
            'model.backbone.num_layers': [1, 1, 1, 1],
            'model.decode_head.in_channels': [8, 16, 40, 64],
            'model.decode_head.channels': 16,
            'test_dataloader.dataset.pipeline.1.scale': (512, 256),
        },
    ),
}


@pytest.mark.parametrize('family', SHIPPED)
def test_a_config_as_its_host_ships_it(
    tool, tmp_path, test_data, random_model, family
):
    """Nothing is said of the backbone; its checkpoint is the host's own."""
    name, data, small = SHIPPED[family]
    host = family.split()[0]
    config = own(host, name, 'configs')
    root = test_data / data
    small = {**small, 'test_dataloader.dataset.data_root': f'{root}/'}
    if host == 'mmdet':
        annotations = root / 'annotations/instances_val2017.json'
        small['test_evaluator.ann_file'] = str(annotations)
    small |= {
        f'val_{key.removeprefix("test_")}': value
        for key, value in small.items()
        if key.startswith('test_')
    }
    model, weights = random_model(config, small)
    out = tmp_path / 'out'
    options = [f'{k}={v}'.replace(' ', '') for k, v in small.items()]
    said = tool(TOOL, config, weights, '--ratio', 0.6, *FEW,
                '--split', 'val', '--out', out,
                '--cfg-options', *options, *NO_WORKERS)  # fmt: skip
    assert f'stands for the backbone {type(model.backbone).__name__}' in said
    if family == 'mmseg ViT':
        assert 'drop_rate=0.1, which acts in training only' in said
    spent = re.search(r'Ratio (\S+) on the calibration images', said)
    assert float(spent[1]) == pytest.approx(0.6, abs=0.02)
    made = out / f'{Path(name).stem}_dynamic-0.6.py'
    forked(own(host, 'test.py'), made, made.with_suffix('.pth'),
           '--work-dir', tmp_path / 'run', **ON_CPU)  # fmt: skip
    found = metrics(tmp_path / 'run', 'test')['backbone/FLOPs_ratio']
    assert found == pytest.approx(0.6, abs=0.2)  # other sizes, or crops

    other = {**small, 'model.backbone.num_layers': [1, 2, 1, 1]}
    if family == 'mmdet PVT':  # whose neck and head fit
        options = [f'{k}={v}'.replace(' ', '') for k, v in other.items()]
        said = tool(TOOL, config, weights, '--split', 'val', '--cfg-options',
                    *options, *NO_WORKERS, expect=2)  # fmt: skip
        assert 'the checkpoint (mmdet PVT layout) does not fit' in said


class TestMistakes:
    @pytest.fixture
    def fail(self, tool, tmp_path, shapes, random_model):
        """A function that runs into a mistake, and returns its error."""
        _, weights = random_model(STATIC['mmseg'], SMALL)

        def run(*arguments, config=STATIC['mmseg'], options=()):
            options = [
                *data_options('mmseg', shapes),
                f'{DEPTH}=(1,1,1,1)',
                *options,
            ]
            said = tool(TOOL, config, weights, *FEW, *arguments,
                        '--cfg-options', *options, expect=2)  # fmt: skip
            (message,) = re.findall('error: (.*)', said)
            return message

        return run

    @pytest.mark.parametrize('ratio', ['0', '1', '1.5', 'half'])
    def test_no_ratio(self, fail, ratio):
        message = fail('--ratio', ratio)
        assert f"'{ratio}' is no ratio of FLOPs, a number between" in message

    def test_less_than_the_coarsest_costs(self, fail, tmp_path):
        message = fail('--ratio', 0.01, '--out', tmp_path / 'out')
        assert 'ratio=0.01 cannot be met: the backbone spends 0.' in message

    def test_one_ratio_of_many_out_of_reach(self, fail, tmp_path):
        out = tmp_path / 'out'
        message = fail('--ratio', 0.6, '--also', 0.01, '--out', out)
        assert 'ratio=0.01 cannot be met: the backbone spends 0.' in message
        # What took long is there.
        made = {path.suffix for path in out.glob('*_dynamic-0.6.*')}
        assert made == {'.py', '.pth'}

    def test_nothing_to_route(self, fail, tmp_path):
        options = ['model.backbone.granularities=[1]']
        message = fail('--out', tmp_path / 'out', options=options)
        assert 'none of its blocks routes' in message

    def test_no_folder(self, fail, tmp_path):
        (tmp_path / 'file').touch()
        with pytest.raises(NotADirectoryError, match='file/folder'):
            fail('--out', tmp_path / 'file' / 'folder')

    @pytest.mark.parametrize(
        ('model', 'message'),
        [
            (
                'backbone._delete_=True backbone.arch=b '
                'backbone.type=mmpretrain.VisionTransformer '
                'backbone.pre_norm=True',
                'fpn_pvt_shapes.py: mmpretrain.VisionTransformer with '
                'pre_norm=True has no dynamic form',
            ),
            (
                'backbone._delete_=True backbone.type=mmpretrain.TIMMBackbone',
                'training: model.backbone is mmpretrain.TIMMBackbone; that',
            ),
            (
                '_delete_=True type=mmdet.SoftTeacher '
                'detector.backbone.type=mmdet.PyramidVisionTransformer',
                'model.backbone is None, and wrapped is '
                'model.detector.backbone, a PyramidVisionTransformer; that',
            ),
        ],
    )
    def test_no_dynamic_form(self, fail, tmp_path, model, message):
        options = [f'model.{option}' for option in model.split()]
        said = fail('--out', tmp_path / 'out', options=options)
        assert message in said
        assert not (tmp_path / 'out').exists()

    def test_a_method_for_a_backbone_of_ours(self, fail, tmp_path):
        message = fail('--method', 'mixed', '--out', tmp_path / 'out')
        assert "--method mixed is for a host's own backbone" in message

    def test_no_data(self, fail, tmp_path):
        root = 'train_dataloader.dataset.data_root'
        message = fail(options=[f'{root}={tmp_path}/none/'])
        assert 'train data not found' in message and root in message

    def test_another_architecture(self, fail, tmp_path):
        options = [f'{DEPTH}=(2,1,1,1)']
        message = fail('--out', tmp_path / 'out', options=options)
        assert 'set arch=dict(num_layers=(1, 1, 1, 1)' in message

    def test_no_checkpoint(self, tool, tmp_path, shapes):
        said = tool(TOOL, STATIC['mmseg'], tmp_path / 'none.pth',
                    '--cfg-options', *data_options('mmseg', shapes),
                    expect=2)  # fmt: skip
        assert 'error: checkpoint not found' in said


def test_it_is_taken_from_the_validation_set_if_asked(
    tool, tmp_path, shapes, random_model
):
    """As where the training set is not there."""
    _, weights = random_model(STATIC['mmseg'], SMALL)
    only = tmp_path / 'only'
    for folder in ('val', 'semantic/val'):
        shutil.copytree(shapes / folder, only / folder)
    said = tool(TOOL, STATIC['mmseg'], weights, *FEW, '--split', 'val',
                '--out', tmp_path / 'out', '--cfg-options',
                f'{DEPTH}=(1,1,1,1)',
                *data_options('mmseg', only))  # fmt: skip
    assert 'looking for the price on 5 images' in said
