"""What the tests of the tools use, and the study's modules."""

import pytest

from tests.test_tools.conftest import random_model, shapes, tool  # noqa: F401
from tests.tool_runs import ROOT


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """As a script finds what lies beside it."""
    monkeypatch.syspath_prepend(ROOT / 'projects/study')
