"""Run the tools without the seconds that a process of its own takes."""

import gc
import runpy
import sys
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

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
    # Loggers of earlier tests would write to streams that are closed by now.
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())
    # MMEngine collects for each data set: leave out what all tests share.
    gc.collect()
    gc.freeze()

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


@pytest.fixture
def random_model(tmp_path):
    """A function that saves a config's model with random weights.

    Its blocks do something, out of the linear regime around zero. It returns
    the model and the file.
    """

    def save(config, options=()):
        cfg = Config.fromfile(ROOT / config)
        cfg.merge_from_dict(dict(options))
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        for key, parameter in model.backbone.named_parameters():
            if 'norm' not in key and '.router.' not in key:
                parameter.data.mul_(3)
        path = tmp_path / 'weights.pth'
        torch.save(dict(state_dict=model.state_dict()), path)
        return model, path

    return save
