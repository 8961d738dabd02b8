"""Which checkpoint a training goes on from."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdge.safe_training import find_latest_checkpoint
from mmdge.utils import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths must not find what lies in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def weights():
    return {'state_dict': {'w': torch.zeros(5000)}, 'meta': {}}


class TestLatestCheckpoint:
    """Times are set, since files may be written within one tick."""

    @pytest.fixture
    def write(self, tmp_path, weights):
        def write(name, at, content=None):
            path = tmp_path / name
            if content is None:
                torch.save(weights, path)
            else:
                path.write_bytes(content)
            os.utime(path, (at, at))
            return str(path)

        return write

    def find(self, tmp_path, **hook):
        cfg = dict(work_dir=str(tmp_path), default_hooks=dict(checkpoint=hook))
        return find_latest_checkpoint(Config(cfg))

    def test_there_is_none(self, tmp_path, write):
        assert self.find(tmp_path) is None
        assert self.find(tmp_path / 'nowhere') is None
        # Nothing to resume from: the best model, and what was not finished.
        write('best_coco_bbox_mAP_epoch_3.pth', 1)
        write('epoch_3.pth.part', 2, b'PK')
        assert self.find(tmp_path) is None

    def test_the_named_one(self, tmp_path, write):
        # Of an earlier, longer training in this folder.
        write('epoch_12.pth', 1)
        named = write('epoch_3.pth', 2)
        write('last_checkpoint', 3, named.encode())
        assert self.find(tmp_path) == named

    def test_one_that_was_saved_but_not_named(self, tmp_path, write):
        named = write('epoch_3.pth', 2)
        write('last_checkpoint', 3, named.encode())
        later = write('epoch_4.pth', 4)
        assert self.find(tmp_path) == later
        write('last_checkpoint', 5, b'')
        assert self.find(tmp_path) == later

    @pytest.mark.parametrize('size', [0, 100, 15000])
    def test_what_is_cut_off_is_passed_over(
        self, size, tmp_path, write, capsys
    ):
        whole = write('epoch_3.pth', 1)
        cut = write('epoch_4.pth', 2)
        with open(cut, 'r+b') as file:
            file.truncate(size)
        write('last_checkpoint', 3, cut.encode())
        assert self.find(tmp_path) == whole
        assert 'epoch_4.pth is broken' in ''.join(capsys.readouterr())
        os.remove(whole)
        with pytest.raises(UserError, match='no checkpoint that can be read'):
            self.find(tmp_path)

    def test_a_flipped_bit_is_found(self, tmp_path, write):
        """In the tensors, in the pickle, or in the archive's directory."""
        whole, path = write('iter_8.pth', 1), write('iter_16.pth', 2)
        content = Path(path).read_bytes()
        draw = random.Random(0)
        # Most of the file is one tensor; its end is the directory.
        places = draw.sample(range(len(content)), 20)
        places += draw.sample(range(len(content) - 900, len(content)), 150)
        missed = 0
        for place in places:
            broken = bytearray(content)
            broken[place] ^= 1 << draw.randrange(8)
            write('iter_16.pth', 2, bytes(broken))
            found = self.find(tmp_path)
            if found != whole:
                # A time or a flag, which nobody reads: all weights are there.
                missed += 1
                loaded = torch.load(path)['state_dict']['w']
                assert loaded.equal(torch.zeros(5000))
        assert missed < len(places) / 2

    def test_the_folder_was_moved_or_copied(self, tmp_path, write):
        write('epoch_4.pth', 1)
        named = write('epoch_3.pth', 2)
        write('last_checkpoint', 3, b'/elsewhere/epoch_3.pth')
        assert self.find(tmp_path) == named
        # An older one that was copied after the mark is not a later one.
        write('epoch_2.pth', 4)
        assert self.find(tmp_path) == named
        # Where it was copied, the original is not touched.
        other = tmp_path / 'other'
        other.mkdir()
        (other / 'last_checkpoint').write_text(named)
        shutil.copy(named, other)
        assert self.find(other) == str(other / 'epoch_3.pth')

    def test_where_the_hook_writes(self, tmp_path, write):
        out = tmp_path / 'out' / tmp_path.name
        out.mkdir(parents=True)
        path = write(out / 'step-7.pth', 1)
        hook = dict(out_dir=str(tmp_path / 'out'), filename_tmpl='step-{}.pth')
        assert self.find(tmp_path, **hook) == path
        # Killed before the name was written, and nothing is where it was.
        write('last_checkpoint', 2, b'')
        assert self.find(tmp_path, **hook) == path
        with pytest.raises(UserError, match='no checkpoint that can be read'):
            self.find(tmp_path)

    @pytest.mark.parametrize(
        ('template', 'older', 'newer'),
        [
            ('e-{:03d}.pth', 'e-009.pth', 'e-010.pth'),
            ('latest.pth', 'other.pth', 'latest.pth'),
        ],
    )
    def test_names_of_any_format(
        self, template, older, newer, tmp_path, write
    ):
        write(older, 1)
        path = write(newer, 2)
        assert self.find(tmp_path, filename_tmpl=template) == path

    def test_a_store_is_asked_by_mmengine(self, tmp_path, write):
        write('last_checkpoint', 1, b's3://bucket/run/epoch_3.pth')
        assert self.find(tmp_path) == 's3://bucket/run/epoch_3.pth'
