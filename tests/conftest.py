"""What several tests use."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from tests.unformatted import leave_unformatted

leave_unformatted()
REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """Files that take long first, so that no process waits for another."""
    seconds = Counter()
    for item in items:
        slow = item.get_closest_marker('slow')
        seconds[item.path] += 10 if slow else 0.1
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loading(monkeypatch):
    """Give MMEngine its own way of loading back, which a tool replaces."""
    schemes = dict(CheckpointLoader._schemes)
    monkeypatch.setattr(CheckpointLoader, '_schemes', schemes)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


@pytest.fixture(scope='session')
def test_data():
    """A folder with data sets and official outputs, or a skipped test."""
    default = REPOSITORY.parent / 'shared'
    root = Path(os.environ.get('MMDGE_TEST_DATA', default))
    if not (root / 'golden').is_dir():
        pytest.skip(f'no test data at {root}; set MMDGE_TEST_DATA')
    return root
