"""Select, pack, scatter, against plain loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdge.models.routing.rows import pack, scatter, select


@given(
    batch_size=st.integers(1, 4),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    part=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_packed_image_by_image(batch_size, lengths, part):
    keeps = [torch.rand(batch_size, n) < part for n in lengths]
    sources = [torch.randn(batch_size, n, 3) for n in lengths]
    selected = select(*keeps)
    expected = [
        torch.cat([x[i, k[i]] for x, k in zip(sources, keeps, strict=True)])
        for i in range(batch_size)
    ]
    assert pack(sources, selected).equal(torch.cat(expected))
    for rows, keep in zip(selected, keeps, strict=True):
        assert rows.lengths == rows.counts.tolist() == keep.sum(1).tolist()
        assert rows.index.equal(keep.flatten().nonzero()[:, 0])


@given(batch_size=st.integers(1, 4), num=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_scatter_puts_back_what_was_packed(batch_size, num):
    keep = torch.rand(batch_size, num) < 0.5
    x, other = torch.randn(2, batch_size, num, 3)
    (rows,) = select(keep)
    found = scatter(x, rows, pack([other], [rows]).bfloat16())
    assert found.dtype == x.dtype
    expected = other.bfloat16().float().where(keep[..., None], x)
    assert found.equal(expected)
