"""From a checkpoint to ONNX Runtime, and the host's metric from there."""

import re

import pytest
import torch

from tests.test_deployment.hosts import build, config
from tests.tool_runs import ROOT, data_options, error_in, figures, metrics

EXPORT = 'tools/deployment/export_onnx.py'
TEST = 'tools/deployment/test_onnx.py'


@pytest.fixture
def checkpoint(tmp_path, shapes):
    """A function that saves a small model; it returns what tools take."""

    def save(name, routing='variance'):
        cfg = config(name)
        cfg.model.backbone.routing = routing
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.num_workers = 0
            loader.persistent_workers = False
        host = cfg.default_scope
        options = dict(o.split('=') for o in data_options(host, shapes))
        cfg.merge_from_dict(options)
        cfg.default_hooks.granularity.num_images = 0
        cfg.test_dataloader.batch_size = 3  # of five images: the last has two
        cfg.dump(tmp_path / 'config.py')
        model = build(name, routing)
        path = tmp_path / 'weights.pth'
        torch.save(dict(state_dict=model.state_dict()), path)
        return tmp_path / 'config.py', path

    return save


def compared(said):
    """Both columns of the table in which ONNX Runtime meets PyTorch."""
    rows = re.findall(r'│ +(\S+) │ +(\S+) │ +(\S+) │', said)
    return [(mine, right) for _, mine, right in rows]


def test_the_page(checkpoint, tool, shapes, tmp_path, monkeypatch):
    """Its commands and its program, on a small checkpoint."""
    page = (ROOT / 'docs/deployment.md').read_text()
    cfg, weights = checkpoint('retinanet')
    file = tmp_path / 'model.onnx'
    known = {'$CONFIG': cfg, '$CHECKPOINT': weights, 'model.onnx': file}
    forms = 'dense', 'constant', 'adaptive'
    known |= {f'{form}.onnx': file for form in forms}
    lines = re.findall(r'^python (tools/.*)$', page, re.MULTILINE)
    exported, tested, timed = (
        tool(*(known.get(word, word) for word in line.split()))
        for line in (*lines[:2], lines[-1])  # between them: of COCO
    )
    assert 'constant, 128 x 128 pixels, batch 2' in exported
    table = compared(tested)
    assert len(table) == 7 and all(mine == right for mine, right in table)
    ratio = float(re.search(r'ratio (\S+)', exported)[1])
    assert 0.2 < ratio < 0.9
    assert f'│ {ratio:.3f} │ 1.000 │' in re.sub(' +', ' ', timed)

    (program,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    image = next((shapes / 'val').glob('*.jpg'))
    program = program.replace('data/shapes/val/shapes_000000.jpg', str(image))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(program, namespace)
    assert namespace['scores'].shape[1:] == (16, 16)
    assert len(namespace['outs']) == 6


def test_adaptive_as_pytorch_tests_it(checkpoint, tool, tmp_path):
    """To the last digit, FLOPs included."""
    cfg, weights = checkpoint('fpn', 'learned')
    said = tool(EXPORT, cfg, weights, '--form', 'adaptive')
    assert 'adaptive, 128 x 128 pixels, batch 1' in said
    found = {}
    for name, script, file in (
        ('onnx', TEST, [weights.with_suffix('.onnx')]),
        ('own', 'tools/test.py', []),
    ):
        tool(script, cfg, weights, *file, '--work-dir', tmp_path / name)
        found[name] = figures(metrics(tmp_path / name, 'test'))
    assert found['own']['backbone/GFLOPs_std'] > 0
    assert found['own'].pop('backbone/region_spread') > 0
    assert found['onnx'].pop('backbone/region_spread') == 0
    assert found['onnx'] == found['own']


@pytest.mark.parametrize('name', ['mask_rcnn', 'classifier'])
def test_a_host_goes_on_from_a_file(name, checkpoint, tool):
    """In runs of two images, the last of one."""
    cfg, weights = checkpoint(name, 'finest')
    said = tool(EXPORT, cfg, weights, '--batch', 2)
    assert 'dense, ' in said and 'ratio 1.000' in said
    file = weights.with_suffix('.onnx')
    table = compared(tool(TEST, cfg, weights, file, '--compare'))
    assert table and all(mine == right for mine, right in table)


@pytest.mark.parametrize(
    'options, message',
    [
        (('--form', 'adaptive', '--batch', 2), 'adaptive is for one image'),
        (('--dynamic',), '--dynamic is for models in which nothing is routed'),
        (('--out', 'nowhere/model.onnx'), 'there is no such folder'),
    ],
)
def test_what_no_export_does(options, message, checkpoint, tool):
    cfg, weights = checkpoint('classifier')
    assert message in error_in(tool(EXPORT, cfg, weights, *options, expect=2))
    assert not weights.with_suffix('.onnx').exists()


@pytest.mark.parametrize('form', ['constant', 'adaptive'])
def test_a_routing_without_constant_shapes(form, checkpoint, tool):
    cfg, weights = checkpoint('cf_vit', 'attention')
    early = ('--cfg-options', 'model.backbone.price=0.4')
    command = EXPORT, cfg, weights, '--num-images', 2, '--form', form
    said = error_in(tool(*command, *early, expect=2))
    assert re.search('CFViT cannot .*: images that are sure', said)


def test_weights_that_do_not_fit(checkpoint, tool):
    """The backbone's alone, and others than those that were exported."""
    cfg, weights = checkpoint('classifier', 'finest')
    model = torch.load(weights)['state_dict']
    torch.save(dict(state_dict=without_head(model)), weights)
    said = error_in(tool(EXPORT, cfg, weights, expect=2))
    assert 'of the backbone alone' in said
    tool(EXPORT, cfg, weights, '--scope', 'backbone')
    file = weights.with_suffix('.onnx')
    torch.save(dict(state_dict=model), weights)
    said = error_in(tool(TEST, cfg, weights, file, expect=2))
    assert f'was not exported from {weights}' in said


def without_head(state):
    return {k: v for k, v in state.items() if k.startswith('backbone.')}


def test_a_size_that_was_not_exported(checkpoint, tool):
    cfg, weights = checkpoint('classifier', 'finest')
    tool(EXPORT, cfg, weights, '--size', 64, 96)
    file = weights.with_suffix('.onnx')
    said = error_in(tool(TEST, cfg, weights, file, expect=2))
    assert 'is for images of 64 x 96 (height x width), but got 96 x 96' in said
