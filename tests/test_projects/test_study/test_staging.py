"""A folder of a data set is there when it is finished, and not before."""

import re

import pytest

from mmdge.utils import UserError
from tests.tool_runs import functions_of

staging = functions_of('projects/study/staging.py')


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data' / 'mine'


def fill(root, text='new', **kwargs):
    with staging.whole_folder(root, ('train', 'val'), **kwargs) as folder:
        assert folder != root
        (folder / 'train').write_text(text)


def contents(root):
    return {path.name: path.read_text() for path in root.iterdir()}


def test_it_takes_its_name_at_the_end(root):
    with staging.whole_folder(root, ('train',)) as folder:
        (folder / 'train').write_text('')
        assert not root.exists()
    assert contents(root) == {'train': ''}
    assert list(root.parent.iterdir()) == [root]


def test_nothing_is_left_of_what_fails(root):
    fill(root, 'old')
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with staging.whole_folder(root, ('train',), overwrite=True) as folder:
            (folder / 'train').write_text('half')
            raise KeyboardInterrupt
    assert contents(root) == {'train': 'old'}
    assert list(root.parent.iterdir()) == [root]


def test_what_a_killed_run_left_is_thrown_away(root):
    part = root.with_name('mine.part')
    part.mkdir(parents=True)
    (part / 'val').write_text('half')
    fill(root)
    assert contents(root) == {'train': 'new'}
    assert not part.exists()


def test_it_is_written_over_only_when_asked(root):
    root.mkdir(parents=True)  # an empty one may be filled
    fill(root, 'old')
    with pytest.raises(UserError, match='is there already; .* --overwrite'):
        fill(root)
    assert contents(root) == {'train': 'old'}
    (root / 'val').write_text('')
    fill(root, overwrite=True)
    assert contents(root) == {'train': 'new'}


def test_other_files_are_never_lost(root):
    root.mkdir(parents=True)
    (root / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match=r'also holds notes\.txt'):
        fill(root, overwrite=True)
    with pytest.raises(UserError, match='is a file'):
        fill(root / 'notes.txt', overwrite=True)
    assert contents(root) == {'notes.txt': 'mine'}


def test_a_link_stays_and_its_target_is_replaced(root, tmp_path):
    target = tmp_path / 'disk'
    fill(target, 'old')
    root.parent.mkdir()
    root.symlink_to(target)
    fill(root, overwrite=True)
    assert root.is_symlink()
    assert contents(target) == {'train': 'new'}


def test_the_bar_counts_and_closes_its_line(capsys):
    with pytest.raises(UserError), staging.progress(4) as step:  # noqa: PT012
        step()
        raise UserError('no')
    said = capsys.readouterr().out
    assert '1/4' in said
    assert said.endswith('\n')


def test_what_is_no_image(tmp_path):
    path = tmp_path / 'a.png'
    with pytest.raises(UserError, match=f'{re.escape(str(path))} is missing'):
        staging.read_image(path)
    path.write_text('text')
    with pytest.raises(UserError, match='a.png is not an image'):
        staging.read_image(path)
