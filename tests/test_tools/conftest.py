"""Run the tools without the seconds that a process of its own takes."""

import runpy
import sys

import pytest

from mmdge.datasets import write_shapes
from tests.tool_runs import ROOT


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A data set of a few small images, which no test changes."""
    root = tmp_path_factory.mktemp('shapes')
    write_shapes(root, num_train=8, num_val=5, size=128)
    return root


@pytest.fixture
def tool(monkeypatch, capfd):
    """A function that runs a tool in this process, from its ``__main__``.

    It returns what the tool printed.
    """

    def run(script, *arguments, expect=0):
        argv = [str(part) for part in (script, *arguments)]
        monkeypatch.setattr(sys, 'argv', argv)
        capfd.readouterr()
        with pytest.raises(SystemExit) as info:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        said = ''.join(capfd.readouterr())
        assert (info.value.code or 0) == expect, said[-3000:]
        return said

    return run
