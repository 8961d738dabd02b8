"""The pages link to what is there, and their code works when pasted."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import imwrite
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement

import mmdge
from mmdge.models import DGEPVT
from mmdge.models.architectures import PVT, ViT
from mmdge.utils.counting import flop_counter

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / 'docs').glob('*.md'))
README = ROOT / 'README.md'
PAGES = [*DOCS, README, *(ROOT / 'configs').glob('*/README.md')]
# What pages and programs say of files: the folders that the names begin with.
FILES = re.compile(r'\b(?:docs|tools|configs|projects)/[\w./-]+\.(?:py|sh|md)')
pages = pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def code(page):
    """The Python blocks of a page."""
    text = (ROOT / page).read_text()
    return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


def without_code(text):
    return re.sub(r'```.*?```', '', text, flags=re.DOTALL)


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(
        r'^#+ (.*)', without_code(page.read_text()), re.MULTILINE
    )
    return [
        re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
        for heading in headings
    ]


@pages
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link, anchor in re.findall(
        r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', without_code(text)
    ):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f'{link}#{anchor}'
    for path in FILES.findall(text):
        assert (ROOT / path).exists(), path


@pages
def test_what_pages_name_exists(page):
    text = page.read_text()
    there = {path.name for path in ROOT.glob('tests/**/*.py')}
    for name in re.findall(r'`(?:tests/)?(test_\w+\.py)`', text):
        assert name in there, name
    for name in re.findall(r'`mmdge\.([A-Za-z]\w*)\b(?!\.)', text):
        assert hasattr(mmdge, name) or f'class {name}(' in text, name


@pytest.mark.parametrize('folder', ['mmdge', 'tools', 'configs', 'projects'])
def test_the_pages_that_programs_name_exist(folder):
    for path in (ROOT / folder).rglob('*.py'):
        for page in re.findall(r'docs/\w+\.md', path.read_text()):
            assert (ROOT / page).exists(), f'{path} names {page}'


def test_nine_pages_all_in_the_readme():
    assert len(DOCS) <= 9
    text = README.read_text()
    assert all(f'](docs/{page.name})' in text for page in DOCS)
    assert len(text.splitlines()) <= 110


@pytest.mark.parametrize('page', [*DOCS, README], ids=lambda p: p.name)
def test_lines_are_short_outside_of_tables(page):
    for line in without_code(page.read_text()).splitlines():
        assert len(line) <= 250 or line.startswith('|'), line


class Host(BaseModel):
    """A model with the modes of the hosts."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.backbone(inputs)
        if mode == 'loss':
            return dict(loss=sum(out.square().mean() for out in maps))
        if mode == 'predict':
            return [BaseDataElement() for _ in inputs]
        return maps


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
    """The files of the page on methods and architectures, imported."""
    folder = tmp_path_factory.mktemp('examples')
    blocks = code('docs/extending.md')
    for name, mark in (('skip', 'class Skip('), ('parallel', 'class DGEPar')):
        (source,) = [block for block in blocks if mark in block]
        assert len(source.splitlines()) < 70
        (folder / f'example_{name}.py').write_text(source)
    sys.path.insert(0, str(folder))
    yield [importlib.import_module(f'example_{n}') for n in BUILDS]
    sys.path.remove(str(folder))


BUILDS = ('skip', 'parallel')
VIT = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)
SMALL_PVT = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 2, 1, 1), num_heads=(1, 2, 2, 4)
)


def families(examples):
    """A method on three architectures, an architecture with two methods."""
    skip, parallel = examples

    class Other(skip.Skip, parallel.Parallel):
        def __init__(self, routing):
            super().__init__()
            self.add_routers(routing, price=0.0, cell=4)

    class SkipPVT(skip.Skip, PVT):
        def __init__(self, routing, **kwargs):
            super().__init__(**kwargs)
            self.add_routers(routing, price=0.0, cell=4)

    vit = dict(arch=VIT, patch_size=8, drop_path_rate=0.0)
    pvt = dict(arch=SMALL_PVT, drop_path_rate=0.0)
    return [
        (skip.SkipViT, ViT, vit),
        (SkipPVT, PVT, pvt),
        (parallel.DGEParallel, parallel.Parallel, {}),
        (Other, parallel.Parallel, {}),
    ]


@pytest.mark.parametrize('routing', ['variance', 'learned', 'random'])
@pytest.mark.parametrize('number', range(4))
def test_the_example_method_and_architecture(examples, number, routing):
    dynamic, static, kwargs = families(examples)[number]
    model = dynamic(routing=routing, **kwargs)
    x = torch.randn(3, 3, 100, 76)
    x[0, :, 40:] *= 0.01
    x[1, ..., 50:] = 0  # padding
    host = Host(model)
    mmdge.CostHook(budget=0.5).attach(host)
    losses = host(x, mode='loss')
    assert losses['flops_ratio'] < 1.01 and 'loss_budget' in losses
    (losses['loss'] + losses['loss_budget']).backward()
    assert all(p.grad is not None for p in model.parameters())

    model.eval()
    with torch.no_grad(), flop_counter() as counter:
        outs = model(x)
    assert counter.get_total_flops() / 2 == model.cost.dynamic.sum()
    assert all(out.isfinite().all() for out in outs)
    if routing != 'learned':  # which starts dense
        assert model.cost.ratio.max() < 0.9
        assert model.cost.region_spread.max() > 0.1
    with torch.no_grad():
        samples = host(x, mode='predict')
        assert samples[0].backbone_cost['dynamic'] > 0
        if routing != 'random':
            for image, out in zip(x, outs[-1], strict=True):
                alone = model(image[None])[-1][0]
                torch.testing.assert_close(alone, out, atol=1e-5, rtol=0)

        twin = static(**kwargs).eval()
        weights = model.state_dict()
        twin.load_state_dict(
            {k: v for k, v in weights.items() if '.router.' not in k}
        )
        expected = twin(x)
        with model.as_dense_twin():
            for ours, theirs in zip(model(x), expected, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert model.cost.dynamic.equal(twin.cost.dense)


def test_the_example_backbones_are_found_by_configs(examples):
    model = MODELS.build(dict(type='mmdge.SkipViT', arch='tiny'))
    assert isinstance(model, examples[0].Skip)


def test_the_example_router_meets_its_shares():
    (source,) = [b for b in code('docs/extending.md') if 'BrightRouter' in b]
    exec(source, {})
    model = DGEPVT('tiny', routing=dict(type='BrightRouter')).eval()
    with torch.no_grad():
        model(torch.rand(1, 3, 256, 256))
    (first, *_) = model.cost.maps
    finest = first.share.eq(1).double().mean().item()
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
    hooks = {hook.get('type') for hook in cfg.default_hooks.values()}
    assert {'CheckpointHook', *HOOKS} <= hooks


HOOKS = ('mmdge.CostHook', 'mmdge.RoutingWarmupHook')


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
    assert cfg.default_hooks.cost.type == 'mmdge.CostHook'


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
