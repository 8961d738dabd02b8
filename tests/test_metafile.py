"""The model index names every config, with figures that are true."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdge.models.methods import Pruning
from mmdge.utils.counting import flop_counter

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
ENTRIES = [
    entry
    for path in INDEX['Import']
    for entry in yaml.safe_load((ROOT / path).read_text())['Models']
]
BY_NAME = {entry['Name']: entry['Metadata'] for entry in ENTRIES}
FOLDERS = [ROOT / Path(path).parent for path in INDEX['Import']]
FLOPS, DENSE = 'FLOPs (backbone)', 'FLOPs (dense backbone)'


def test_every_config_is_in_the_index():
    configs = [
        path
        for path in (ROOT / 'configs').glob('[!_]*/*.py')
        if path.parent.name != 'shapes'
    ]
    expected = sorted(str(path.relative_to(ROOT)) for path in configs)
    assert sorted(entry['Config'] for entry in ENTRIES) == expected
    assert len(BY_NAME) == len(ENTRIES)
    for entry in ENTRIES:
        assert Path(entry['Config']).stem == entry['Name']


def test_readmes_link_every_config():
    for entry in ENTRIES:
        text = (ROOT / entry['Config']).with_name('README.md').read_text()
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
    if 'dynamic-' in entry['Name']:  # spends as much on every image
        if isinstance(model.backbone, Pruning):
            flops = flops_of_pruning(model.backbone, height, width)
        else:
            saved = saved_by_fast_path(model.backbone, height, width)
            flops = meta[DENSE] - saved
        assert flops == meta[FLOPS]
        budget = cfg.default_hooks.cost.budget
        assert flops / meta[DENSE] == pytest.approx(budget, abs=0.005)
    if 'cf-' in entry['Name']:  # none leaves
        flops, dense = flops_of_two_passes(model.backbone, height, width)
        assert (flops, dense) == (meta[FLOPS], meta[DENSE])
        budget = cfg.default_hooks.cost.budget
        assert flops / dense == pytest.approx(budget, abs=0.005)
        return
    twin = entry['Name'].replace('dge-', '').replace('dynamic-vit', 'deit')
    twin = twin.replace('dynamic-', '').replace('token-routing-', '')
    if twin != entry['Name']:  # has the same, and is counted
        assert meta[DENSE] == BY_NAME[twin][DENSE]
        return
    with torch.device('meta'), flop_counter() as counter:
        model.backbone.eval()(torch.empty(1, 3, height, width))
    assert counter.get_total_flops() / 2 == meta[DENSE]


def flops_of_two_passes(backbone, height, width):
    """Of an image without padding, by formula; and the dense twin's."""
    size, grid = ((height // s, width // s) for s in (16, 32))
    num_fine, num_coarse = (h * w for h, w in (size, grid))
    split = -(-num_coarse // 2)
    rows = 4 * split + num_coarse - split
    dense = backbone.patch_embed.flops(size)
    total = dense + backbone.patch_embed.flops(grid)
    dims = backbone.arch['embed_dims']
    for number, block in enumerate(backbone.blocks):
        for num in (num_coarse, rows):
            total += block.flops((num, 1), 1).at(num + 1)
        dense += block.flops(size, 1).at(num_fine + 1)
        # The cls query, once more, with all coarse keys.
        total += (num_coarse + 1) * dims * (number >= 3)
    hidden = backbone.arch['feedforward_channels']
    total += num_coarse * 2 * dims * hidden
    if backbone.num_classes:
        total += sum(backbone.head_flops(n + 1) for n in (num_coarse, rows))
        dense += backbone.head_flops(num_fine + 1)
    return total, dense


def flops_of_pruning(backbone, height, width):
    """Of an image without padding, by formula."""
    size = height // backbone.patch_size, width // backbone.patch_size
    num = kept = size[0] * size[1]
    total, predictors = backbone.patch_embed.flops(size), []
    for number, block in enumerate(backbone.blocks):
        if number in backbone.keep_ratios:
            router = backbone.score_predictor[len(predictors)]
            predictors.append(router.flops().at(count(kept)))
            kept = int(num * backbone.keep_ratios[number])
        # The cls token is always there.
        total += block.flops((kept, 1), 1).at(count(kept + 1))
    return (total + sum(predictors)).item()


def saved_by_fast_path(backbone, height, width):
    """Of an image without padding, by formula; less what predictors cost."""
    num = kept = height // 16 * (width // 16)
    total, predictors = 0, iter(backbone.score_predictor)
    for number, block in enumerate(backbone.stages[2]):
        if number in backbone.keep_ratios:
            total -= next(predictors).flops().at(count(num)).item()
            kept = int(num * backbone.keep_ratios[number])
        if kept < num:
            row = block.flops((1, 1), 0).per_row - block.fast_path.flops()
            total += (num - kept) * row
    return total


def count(number):
    return torch.tensor(number, dtype=torch.float64)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_the_readmes_tables_are_the_index(folder):
    text = (folder / 'README.md').read_text()
    pairs = re.findall(
        r'^\|(.*)\[static\]\((.*)\.py\).*\((.*)\.py\)', text, re.M
    )
    dynamic = [name for *_, name in pairs]
    expected = {
        path.stem
        for path in folder.glob('*.py')
        if re.search('dge-|dynamic-|cf-|token-routing-', path.stem)
    }
    assert set(dynamic) == expected and len(dynamic) == len(expected)
    for row, static, dynamic in pairs:
        static, dynamic = BY_NAME[Path(static).name], BY_NAME[dynamic]
        _, _, parameters, gflops, *_ = row.split('|')
        expected = f'{static[DENSE] / 1e9:.1f}'
        if FLOPS in dynamic:
            expected += f', {dynamic[FLOPS] / 1e9:.1f}'
        assert gflops.strip() == expected
        total = static['Parameters']
        more = dynamic['Parameters'] - total
        expected = f'{total / 1e6:.1f}'
        if more > 1e7:  # columns of blocks
            expected += f' (+{more / 1e6:.1f})'
        elif more:
            expected += f' (+{more / 1e3:.1f} k)'
        assert parameters.strip() == expected
