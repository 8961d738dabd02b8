"""The model index names every config, with figures that are true."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
ENTRIES = [
    entry
    for path in INDEX['Import']
    for entry in yaml.safe_load((ROOT / path).read_text())['Models']
]


def test_every_config_is_in_the_index():
    configs = (ROOT / 'configs/dge').glob('*.py')
    expected = sorted(str(path.relative_to(ROOT)) for path in configs)
    assert sorted(entry['Config'] for entry in ENTRIES) == expected
    for entry in ENTRIES:
        assert Path(entry['Config']).stem == entry['Name']


def test_readme_links_every_config():
    text = (ROOT / 'configs/dge/README.md').read_text()
    for entry in ENTRIES:
        assert f'({entry["Name"]}.py)' in text


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_figures(entry):
    meta = entry['Metadata']
    width, height = map(int, meta['Input Size'].split('x'))
    cfg = Config.fromfile(ROOT / entry['Config'])
    backbone = dict(cfg.model.backbone, routing='finest', init_cfg=None)
    counter = FlopCounterMode(display=False)
    with torch.device('meta'), sdpa_kernel(SDPBackend.MATH):
        model = MODELS.build(backbone).eval()
        with counter:
            model(torch.empty(1, 3, height, width))
    assert counter.get_total_flops() / 2 == meta['FLOPs (dense backbone)']
