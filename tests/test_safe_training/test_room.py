"""The room knows MMEngine alone: it could leave for it."""

import re

import pytest

from tests.tool_runs import ROOT

FILES = sorted((ROOT / 'mmdge' / 'safe_training').glob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_nothing_here_knows_a_token(path):
    text = path.read_text()
    found = re.findall(r'(?:from|import) (\.\.\S*|mm\w+)(\S*)', text)
    for package, rest in found:
        assert package in ('mmengine', 'mmdge')
        if package == 'mmdge':
            assert rest in ('.errors', '.registry')
