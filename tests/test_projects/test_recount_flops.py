"""The published FLOPs, recounted: the anchors, and the tables in the docs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from mmcv.cnn.utils import flops_counter

from tests.forked import forked

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'projects/recount_flops/recount_flops.py'
DOCS = (ROOT / 'docs' / 'flops.md').read_text()


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('recount_flops', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    'task, backbone, total, without_attention',
    [
        ('RetinaNet', 'PVT-S', 285.7, 226.3),
        ('RetinaNet', 'PVT-M', 372.9, 282.8),
        ('RetinaNet', 'PVT-L', 474.8, 345.2),
        ('RetinaNet', 'PVTv2-B2', 290.2, 230.8),
        ('Mask R-CNN', 'PVT-S', 304.2, 244.8),
        ('Semantic FPN', 'PVT-T', 33.19, 31.11),
        ('Semantic FPN', 'PVT-S', 44.47, 40.58),
        ('Classifier', 'DeiT-S', 4.60, 4.24),
    ],
)
def test_anchors(tool, task, backbone, total, without_attention):
    counted = tool.recount(task, backbone)
    digits = 1 if total > 100 else 2
    assert round(counted.total / 1e9, digits) == total
    without = counted.total - counted.attention
    assert round(without / 1e9, digits) == without_attention
    assert tool.markdown_row(tool.cells(task, backbone, counted)) in DOCS


def test_attention_is_both_products(tool):
    """PVT-S at 800 x 1280: tokens, keys, channels, blocks of each stage."""
    stages = [
        (64000, 1000, 64, 3),
        (16000, 1000, 128, 4),
        (4000, 1000, 320, 6),
        (1000, 1000, 512, 3),
    ]
    assert tool.recount('RetinaNet', 'PVT-S').attention == sum(
        2 * tokens * keys * channels * blocks
        for tokens, keys, channels, blocks in stages
    )


def test_a_printed_number_is_held_against_both_counts(tool):
    counted = tool.Recount(int(60e9), int(40e9), int(20e9), int(30e9))
    assert tool.verdict(150, counted) == 'all'
    assert tool.verdict(110.0, counted) == 'no attention'
    assert tool.verdict(150.3, counted) == 'all, +0.20%'
    assert tool.verdict(99, counted) == 'no attention, -10.00%'


def test_what_has_no_column_is_not_passed_over(tool):
    x = torch.empty(2, 3, 3, device='meta')
    with pytest.raises(RuntimeError, match='neither a layer nor attention'):
        tool.count(torch.baddbmm, x, x, x)


def test_the_rest_is_what_mmcv_counts_besides(tool):
    """ResNet-50 in RetinaNet, with norms and activations: as printed."""
    model = tool.build('RetinaNet', 'ResNet-50')
    image = torch.empty(1, 3, 800, 1280, device='meta')
    flops_counter.add_flops_counting_methods(model)
    model.start_flops_count()
    with torch.no_grad():
        model(image, None)
    flops, _ = model.compute_average_flops_cost()
    assert round(flops / 1e9, 1) == 239.3
    assert 239.3 in tool.PUBLISHED['RetinaNet']['ResNet-50'].values()


def test_every_source_is_named(tool):
    sources = {
        where.split(',')[0]
        for found in tool.PUBLISHED.values()
        for published in found.values()
        for where in published
    }
    (line,) = re.findall(r'^In print: (.*)', DOCS, re.DOTALL | re.MULTILINE)
    assert sources == set(re.findall(r'(\w+)(?:, of [a-z ]+)? \(\[', line))


@pytest.mark.slow
def test_the_docs_hold_what_the_tool_writes(tmp_path):
    out = forked(
        TOOL,
        '--markdown',
        tmp_path / 'flops.md',
        '--json',
        tmp_path / 'flops.json',
    )
    assert 'no attention' in out
    assert (tmp_path / 'flops.md').read_text() in DOCS
    figures = json.loads((tmp_path / 'flops.json').read_text())
    assert figures['RetinaNet']['PVT-S']['attention'] == 59.392


def test_a_folder_that_is_not_there(tmp_path):
    out = forked(TOOL, '--json', tmp_path / 'no' / 'flops.json', expect=2)
    assert 'there is no such folder' in out and 'Traceback' not in out
