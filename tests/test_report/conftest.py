"""A folder to report on."""

import pytest

from tests.report_files import write_training


@pytest.fixture
def training(tmp_path):
    """A training in ``tmp_path / 'runs' / 'train'``."""
    write_training(tmp_path / 'runs' / 'train')
    return tmp_path / 'runs'
