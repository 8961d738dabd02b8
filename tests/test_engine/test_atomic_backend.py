import os
import resource
import signal

import pytest
from mmengine.fileio import get_file_backend

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
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'a.pth.part']
    BACKEND.put(b'new', path)
    assert os.listdir(tmp_path) == ['a.pth']


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
