import argparse
import functools
import http.server
import os
import threading
import urllib.error

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import _load_checkpoint

from mmdge.safe_training import read_checkpoint, use_safe_loading
from mmdge.utils import UserError
from tests import hostile

CODE = (hostile.code, hostile.old_code, hostile.code_by_getattr)


@pytest.fixture
def safe():
    """As in a tool, until the test ends."""
    use_safe_loading()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a folder's files, and where downloads go."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path
    )
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def training_state():
    """What a checkpoint of MMEngine or of DeiT's code may hold."""
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    return {
        'state_dict': {'w': torch.rand(3)},
        'message_hub': {'log_scalars': {'loss': log}},
        'meta': {'seed': np.int64(3), 'lr': np.float32(0.1), 'part': slice(2)},
        'args': argparse.Namespace(lr=0.1),
        'metrics': np.arange(4, dtype=np.float32),
    }


@pytest.mark.parametrize('archive', [True, False])
def test_training_states_are_read(tmp_path, archive):
    path = tmp_path / 'a.pth'
    state = training_state()
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    for mmap in (False, True):
        read = read_checkpoint(path, mmap=mmap)
        assert read['state_dict']['w'].equal(state['state_dict']['w'])
        buffer = read['message_hub']['log_scalars']['loss']
        assert buffer.mean() == 1.5 and buffer.statistics('max') == 2
        assert read['args'].lr == 0.1
        assert read['metrics'].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('case', CODE)
def test_the_files_would_do_harm(case, tmp_path):
    """Else the tests below prove nothing."""
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    case(path, marker)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize('case', CODE)
def test_forcing_weights_only_is_not_enough(case, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    case(path, marker)
    try:
        _load_checkpoint(str(path))
    except Exception:
        assert not marker.exists()
    else:
        assert case is hostile.code_by_getattr and marker.exists()


@pytest.mark.parametrize('case', CODE)
@pytest.mark.parametrize('load', [read_checkpoint, _load_checkpoint])
def test_code_is_refused(case, load, tmp_path, safe):
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    case(path, marker)
    with pytest.raises(UserError, match=hostile.CASES[case]) as info:
        load(str(path))
    assert str(path) in str(info.value) and '\n' not in str(info.value)
    assert not marker.exists()


@pytest.mark.parametrize('case', CODE)
def test_a_download_with_code_is_refused(case, tmp_path, safe, served):
    path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
    case(path, marker)
    for _ in range(2):  # downloaded, and found there
        with pytest.raises(UserError, match=hostile.CASES[case]):
            _load_checkpoint(f'{served}/a.pth')
    assert not marker.exists()


def test_a_download(tmp_path, safe, served):
    torch.save(training_state(), tmp_path / 'a.pth')
    assert _load_checkpoint(f'{served}/a.pth')['args'].lr == 0.1
    with pytest.raises(UserError, match='download it by hand.*404') as info:
        _load_checkpoint(f'{served}/b.pth')
    assert isinstance(info.value.__cause__, urllib.error.HTTPError)


def test_who_sets_the_opposite_means_it(monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    use_safe_loading()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_a_config_that_resuming_would_run_is_left_out(tmp_path, safe, served):
    meta = dict(config='print("harm")', epoch=3)
    content = dict(state_dict=dict(w=torch.zeros(2)), meta=meta)
    torch.save(content, tmp_path / 'a.pth')
    for source in (str(tmp_path / 'a.pth'), f'{served}/a.pth'):
        assert _load_checkpoint(source, 'cpu')['meta'] == dict(epoch=3)
