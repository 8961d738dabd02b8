"""What is said in one line, and what keeps its traceback."""

import pytest
from torch._utils import ExceptionWrapper

from mmdge.utils.mistakes import in_one_line

LOADING = """
def load(results):
    {}
"""


@pytest.mark.parametrize(
    'line, said',
    [
        ("raise ValueError('no image')", 'sample (a.jpg): no image'),
        ("raise OSError('cut off')", 'sample (a.jpg): cut off'),
        ('len(3)', "sample (a.jpg): object of type 'int' has no len()"),
        ('unknown', None),  # a bug, which only its traceback finds
        ('import nothing_of_this_name', None),
    ],
)
def test_a_bug_of_a_loader_keeps_its_traceback(line, said):
    namespace = {}
    exec(compile(LOADING.format(line), 'my/loading.py', 'exec'), namespace)
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011
        namespace['load'](dict(img_path='a.jpg'))
    line = in_one_line(caught.value)
    assert line is None if said is None else said in line


@pytest.mark.parametrize(
    'error, said', [(ValueError('no image'), 'no image'), (NameError(), None)]
)
def test_nor_is_it_lost_in_a_worker(error, said):
    namespace = dict(error=error)
    code = LOADING.format('raise error')
    exec(compile(code, 'my/loading.py', 'exec'), namespace)
    try:
        namespace['load']({})
    except (ValueError, NameError):
        wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(type(error)) as caught:
        wrapped.reraise()
    line = in_one_line(caught.value)
    assert line is None if said is None else said in line
