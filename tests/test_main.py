"""``python -m mmdge SCRIPT``, which the hosts' own scripts go through."""

from tests.tool_runs import python

SCRIPT = """
import sys
from mmdge.utils import UserError
from sibling import found

if __name__ == '__main__':
    raise UserError(f'{found} beside {sys.argv[0]}, {sys.argv[1:]}')
"""


def test_a_script_finds_its_siblings_and_fails_in_one_line(tmp_path):
    (tmp_path / 'sibling.py').write_text("found = 'found'")
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    said = python('-m', 'mmdge', script, '--x', expect=2)
    assert said.splitlines()[-1] == f"error: found beside {script}, ['--x']"
    assert 'Traceback' not in said
