"""What is missing is said in one sentence when mmdge is imported."""

import importlib.util
import runpy

import pytest

from .tool_runs import ROOT

FILE = ROOT / 'mmdge/_requirements.py'


@pytest.mark.parametrize('module', ['mmengine', 'mmcv'])
def test_a_missing_package(module, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name: None if name == module else find_spec(name),
    )
    message = (
        f'^mmdge needs {module}, which is not installed: pip install '
        rf'onedl-{module} .* or {module} .*, but not both\.$'
    )
    with pytest.raises(ImportError, match=message):
        runpy.run_path(FILE)
