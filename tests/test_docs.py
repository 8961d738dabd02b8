"""The pages link to what is there, and their code works when pasted."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import imwrite
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdge.models import DGEPVT
from mmdge.utils.counting import flop_counter

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / 'docs').glob('*.md'),
    ROOT / 'README.md',
    *(ROOT / 'configs').glob('*/README.md'),
]


def code(page):
    """The Python blocks of a page."""
    text = (ROOT / page).read_text()
    return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r'\]\((?!https?:)([^)#]+)', text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r'(?:tools|configs)/[\w./-]+\.(?:py|sh)', text):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_index():
    text = (ROOT / 'docs/README.md').read_text()
    listed = re.findall(r'\]\(([\w]+\.md)\)', text)
    there = {page.name for page in (ROOT / 'docs').glob('*.md')}
    assert set(listed) == there - {'README.md'}


def test_the_example_backbone_keeps_the_contract():
    blocks = code('docs/extending.md')
    namespace = {}
    (source,) = [b for b in blocks if 'class SkipNet' in b]
    exec(source, namespace)
    model = namespace['SkipNet'](threshold=0.2)
    x = torch.rand(3, 3, 64, 48)
    x[1] = 0.5  # without contrast
    with torch.no_grad(), flop_counter() as counter:
        (out,) = model(x[:1])
    assert out.shape == (1, 16, 16, 12)
    assert counter.get_total_flops() / 2 == model.cost.dynamic.item()
    model(x)
    assert model.cost.ratio[0] == model.cost.ratio[2] == 1
    assert model.cost.ratio[1] < 0.5


def test_the_example_router_meets_its_shares():
    (source,) = [b for b in code('docs/extending.md') if 'BrightRouter' in b]
    exec(source, {})
    model = DGEPVT('tiny', routing=dict(type='BrightRouter')).eval()
    with torch.no_grad():
        model(torch.rand(1, 3, 256, 256))
    (first, *_) = model.cost.maps
    finest = first.granularity.eq(1).double().mean().item()
    assert finest == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize('neck', ['FPN', 'SimpleFPN'])
def test_the_detector_of_your_own_config_builds(neck, tmp_path):
    first, second, *_ = code('docs/your_own_config.md')
    path = tmp_path / 'mine.py'
    path.write_text(first)
    cfg = Config.fromfile(path)
    if neck == 'SimpleFPN':
        namespace = {}
        exec(second, namespace)
        cfg.merge_from_dict(dict(model=namespace['model']))
    cfg.model.backbone.init_cfg = None  # no download
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        outs = model.extract_feat(torch.rand(1, 3, 128, 128))
    assert type(model.neck).__name__ == neck
    assert [out.shape[-1] for out in outs] == [32, 16, 8, 4, 2]
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator[0].metric == ['bbox', 'segm']
        assert evaluator[1].type == 'mmdge.BackboneFLOPs'
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks == ['mmdge.CostHook', 'mmdge.RoutingWarmupHook']


def test_the_segmentor_of_your_own_config_builds(tmp_path):
    mmseg = pytest.importorskip('mmseg')
    (source,) = [b for b in code('docs/your_own_config.md') if 'MMSEG' in b]
    configs = Path(mmseg.__file__).parent / '.mim/configs'
    path = tmp_path / 'mine.py'
    path.write_text(source.replace('MMSEG', str(configs)))
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None  # no download
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 3, 64, 64))
    assert out.shape == (1, 150, 16, 16)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'


def test_the_classifier_of_your_own_config_builds(tmp_path):
    (source,) = [b for b in code('docs/your_own_config.md') if 'resnet' in b]
    path = tmp_path / 'mine.py'
    path.write_text(source)
    cfg = Config.fromfile(path)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        scores = model(torch.rand(2, 3, 64, 64))
    assert scores.shape == (2, 1000)
    assert type(model.backbone).__name__ == 'DGEPVT'
    assert cfg.test_evaluator[1].type == 'mmdge.BackboneFLOPs'


def test_the_detector_of_the_first_experiment_tells_its_cost(
    tmp_path, monkeypatch
):
    pytest.importorskip('mmdet')
    (source,) = code('docs/first_experiment.md')
    config, checkpoint, image = re.findall(r"'(\w+/\S+)'", source)
    for path, there in (
        (config, ROOT / config),
        (checkpoint, None),
        (image, tmp_path / 'image.jpg'),
    ):
        source = source.replace(repr(path), repr(there and str(there)))
    imwrite(np.full((64, 96, 3), 90, np.uint8), str(tmp_path / 'image.jpg'))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(source, namespace)
    cost = namespace['result'].backbone_cost
    assert 0 < cost['dynamic'] < cost['dense']
