"""The model index names every config, with figures that are true."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdge.utils.counting import flop_counter

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
ENTRIES = [
    entry
    for path in INDEX['Import']
    for entry in yaml.safe_load((ROOT / path).read_text())['Models']
]
FLOPS = 'FLOPs (dense backbone)'


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
    loop = cfg.train_cfg
    length = loop.get('max_epochs') or loop.max_iters
    assert length == (meta.get('Epochs') or meta['Iterations'])

    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == meta['Parameters']
    if 'dge-' in entry['Name']:  # its dense twin has the same, and is counted
        twin = entry['Name'].replace('dge-', '')
        (twin,) = [other for other in ENTRIES if other['Name'] == twin]
        assert meta[FLOPS] == twin['Metadata'][FLOPS]
        return
    with torch.device('meta'), flop_counter() as counter:
        model.backbone.eval()(torch.empty(1, 3, height, width))
    assert counter.get_total_flops() / 2 == meta[FLOPS]


def test_the_readmes_tables_are_the_index():
    text = (ROOT / 'configs/dge/README.md').read_text()
    by_name = {entry['Name']: entry['Metadata'] for entry in ENTRIES}
    pairs = re.findall(
        r'^\|(.*)\[static\]\((.*)\.py\).*\((.*)\.py\)', text, re.M
    )
    assert len(pairs) == len(ENTRIES) / 2
    for row, static, dynamic in pairs:
        _, _, parameters, gflops, *_ = row.split('|')
        flops = by_name[static][FLOPS] / 1e9
        assert gflops.strip() == f'{flops:.1f}'
        total = by_name[static]['Parameters']
        more = by_name[dynamic]['Parameters'] - total
        expected = f'{total / 1e6:.1f}'
        if more:
            expected += f' (+{more / 1e3:.1f} k)'
        assert parameters.strip() == expected
