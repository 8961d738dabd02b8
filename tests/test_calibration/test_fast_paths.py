"""Fast paths in closed form."""

import copy

import pytest
import torch
from torch import nn

from mmdge.calibration import fit_fast_paths
from tests.small import dynamic_convnext, dynamic_swin, pictures


@pytest.mark.parametrize('build', [dynamic_swin, dynamic_convnext])
def test_fitted_paths_are_nearer_to_the_dense_twin(build):
    model = build(routing='uniform', keep_ratio=[0.5, 0.3]).eval()
    images, others = pictures(4, 96, 96), pictures(4, 96, 96)
    dense = {}

    def distance():
        with torch.no_grad():
            with model.as_dense_twin():
                dense['maps'] = model(others)
            return sum(
                (ours - theirs).square().mean().item()
                for ours, theirs in zip(
                    model(others), dense['maps'], strict=True
                )
            )

    before = distance()
    shares = fit_fast_paths(model, [images])
    assert distance() < before / 2
    assert len(shares) == len(model.stages[2])
    assert all(0.2 < share <= 1 for share in shares.values())


def test_a_linear_block_is_found_again():
    """What a linear layer can do, the regression finds."""
    model = dynamic_swin(routing='uniform').eval()
    block = model.stages[2][-1]
    path, rows = block.fast_path, torch.randn(50, block.embed_dims)
    known = copy.deepcopy(path)
    nn.init.normal_(known.fc.weight)
    block.update = lambda rows, *args: known(rows)
    shares = fit_fast_paths(model, [pictures(4, 128, 128)])
    assert (path(rows) - known(rows)).norm() < 0.02 * known(rows).norm()
    assert shares[block.name] > 0.99
