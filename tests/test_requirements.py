"""What is missing is said in one sentence when mmdge is imported."""

import importlib
import importlib.util
import runpy

import pytest
import torch

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


def test_the_original_distributions_with_new_setuptools(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError('no module', name='pkg_resources')

    monkeypatch.setattr(importlib, 'import_module', fail)
    message = r"^open-mmlab's own mmengine needs .* 'setuptools<81'\.$"
    with pytest.raises(ImportError, match=message):
        runpy.run_path(FILE)


def test_a_torch_that_cannot_read_safely(monkeypatch):
    monkeypatch.delattr(torch.serialization, 'safe_globals')
    monkeypatch.setattr(torch, '__version__', '2.5.1')
    message = r'^mmdge needs torch 2\.6 or newer, found 2\.5\.1: '
    with pytest.raises(ImportError, match=message):
        runpy.run_path(FILE)
