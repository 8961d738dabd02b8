"""What is said in one line, and what keeps its traceback."""

import pytest

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
        ('unknown', None),  # a bug, which only its traceback finds
        ("'a' + 1", None),
    ],
)
def test_a_bug_of_a_loader_keeps_its_traceback(line, said):
    namespace = {}
    exec(compile(LOADING.format(line), 'my/loading.py', 'exec'), namespace)
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011
        namespace['load'](dict(img_path='a.jpg'))
    line = in_one_line(caught.value)
    assert line is None if said is None else said in line
