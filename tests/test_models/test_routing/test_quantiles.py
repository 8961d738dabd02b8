"""Ranks and summaries, as pure functions."""

import torch

from mmdge.models.routing.quantiles import (
    rank_among_quantiles,
    rank_within_image,
    summarise,
)


def test_ranks():
    quantiles = torch.tensor([0.0, 1.0, 2.0, 10.0])
    scores = torch.tensor([-5.0, 0.0, 0.5, 2.0, 6.0, 11.0, torch.nan])
    torch.testing.assert_close(
        rank_among_quantiles(scores, quantiles),
        torch.tensor([0, 0, 1 / 6, 2 / 3, 5 / 6, 1, 1]),
        atol=2e-6,
        rtol=0,
    )
    scores = torch.tensor([[[3.0, 1.0], [2.0, 0.0]]])
    everything = torch.ones(1, 2, 2, dtype=torch.bool)
    ranks = rank_within_image(scores, everything)
    assert ranks.tolist() == [[[0.875, 0.375], [0.625, 0.125]]]
    ranks = rank_within_image(scores, everything & (scores != 3))
    assert (6 * ranks).round().tolist() == [[[0, 3], [5, 1]]]


def test_summaries_put_together_are_the_whole():
    batches = [torch.randn(500) + shift for shift in (-5, 0, 5)]
    together = torch.cat([summarise(batch, 32) for batch in batches])
    levels = torch.linspace(0.05, 0.95, 10)
    torch.testing.assert_close(
        together.quantile(levels),
        torch.cat(batches).quantile(levels),
        atol=0.3,
        rtol=0,
    )
    assert summarise(torch.tensor([torch.nan, 2.0]), 3).tolist() == [2, 2, 2]
    assert summarise(torch.tensor([torch.inf]), 3).isnan().all()
