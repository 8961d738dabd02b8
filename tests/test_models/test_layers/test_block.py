"""What blocks of all architectures have in common."""

import pytest
import torch

from mmdge.models.layers.block import DropPath


@pytest.mark.parametrize('lengths', [[3, 1, 4], [2, 2, 2]])
def test_drop_path_drops_samples_whole(lengths):
    drop = DropPath(0.5)
    lengths = lengths * 50
    x = torch.ones(sum(lengths), 2)
    factor = drop.draw(len(lengths), x)
    rows = drop(x, factor, lengths).split(lengths)
    assert [part.unique().item() for part in rows] == factor.tolist()
    assert set(factor.tolist()) == {0.0, 2.0}
    assert drop.eval().draw(2, x) is None
    assert drop(x, None, lengths) is x


@pytest.mark.parametrize('value', [-0.1, 1.0])
def test_drop_path_probability(value):
    with pytest.raises(ValueError, match='drop_prob must be in'):
        DropPath(value)
