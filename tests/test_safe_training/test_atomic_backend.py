import os
import resource
import signal

import pytest
from mmengine.fileio import get_file_backend

from mmdge.safe_training.atomic_backend import take_folder
from mmdge.utils import UserError

BACKEND = get_file_backend(backend_args=dict(backend='mmdge.atomic'))


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / 'new' / 'a.pth'
    for content in (b'one', b'another'):
        BACKEND.put(content, path)
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == ['a.pth']


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.pth'
    BACKEND.put(b'old', path)
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        BACKEND.put(b'new', path)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_bytes() == b'old'
    left = sorted(os.listdir(tmp_path))
    assert left[0] == 'a.pth' and len(left) == 2
    assert left[1].startswith('a.pth.') and left[1].endswith('.part')
    # The next training there clears it away.
    take_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['.training', 'a.pth']


def test_two_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    path, fsync = tmp_path / 'a.pth', os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, 'fsync', fsync)
        BACKEND.put(b'other', path)
        assert path.read_bytes() == b'other'

    monkeypatch.setattr(os, 'fsync', meanwhile)
    BACKEND.put(b'one', path)
    assert path.read_bytes() == b'one'
    assert os.listdir(tmp_path) == ['a.pth']


def test_a_folder_is_of_one_training(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        take_folder(tmp_path)
        take_folder(tmp_path)  # again, as a second training of a process
        os.write(write, b'.')
        signal.pause()
    os.read(read, 1)
    with pytest.raises(UserError, match=f'process {child}, writes to .*wait'):
        take_folder(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    take_folder(tmp_path)
    assert (tmp_path / '.training').read_text() == str(os.getpid())


@pytest.fixture
def small_disk():
    """No file may be longer than 1000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(tmp_path, small_disk):
    path = tmp_path / 'a.pth'
    BACKEND.put(b'old', path)
    with pytest.raises(UserError, match=r'cannot write .*a\.pth.*--resume'):
        BACKEND.put(bytes(2000), path)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['a.pth']


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write .*File exists'):
        BACKEND.put(b'', tmp_path / 'file' / 'a.pth')
