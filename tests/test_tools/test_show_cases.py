"""Where routing hurts, drawn."""

import re

import cv2
import pytest

from tests.tool_runs import SHAPES, data_options

TOOL = 'tools/analysis_tools/show_cases.py'


@pytest.mark.parametrize('host', SHAPES)
def test_cases(tool, random_model, shapes, tmp_path, host):
    _, weights = random_model(SHAPES[host])
    out = tmp_path / 'cases.png'
    said = tool(
        TOOL,
        *(SHAPES[host], weights, '--out', out, '--num-cases', 1),
        *('--num-images', 3, '--cfg-options', *data_options(host, shapes)),
    )
    rise, p5, p95 = (
        float(re.search(rf'{name} (-?[\d.]+)', said)[1])
        for name in ('rises by', 'p5', 'p95')
    )
    assert p5 <= rise <= p95 and p5 < p95
    height, width, _ = cv2.imread(str(out)).shape
    assert width > height > 400  # two images, one below the other


def test_without_routing_nothing_rises(tool, random_model, shapes, tmp_path):
    config = SHAPES['mmseg']
    _, weights = random_model(config)
    options = ['--num-images', 2, '--cfg-options']
    options += ['model.backbone.routing=finest']
    said = tool(
        TOOL,
        *(config, weights, '--out', tmp_path / 'x.png', *options),
        *data_options('mmseg', shapes),
    )
    assert 'rises by 0.0000' in said


def test_mistakes(tool, random_model, shapes, tmp_path):
    config = SHAPES['mmseg']
    _, weights = random_model(config)
    said = tool(
        TOOL,
        *(config, weights, '--out', tmp_path / 'no/x.png'),
        expect=2,
    )
    assert 'there is no such folder' in said
