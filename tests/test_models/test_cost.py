"""The record of what ran."""

import torch

from mmdge.models.cost import ComputeMap, Cost, LinearCost


def test_costs_add_up():
    a = Cost.constant(3, 2, torch.device('cpu'))
    b = Cost(
        dynamic=torch.tensor([1.0, 2.0], dtype=torch.float64),
        dense=torch.tensor([4.0, 4.0], dtype=torch.float64),
        maps=(ComputeMap(torch.ones(2, 1, 1), 16, 'block1.0'),),
    )
    total = Cost.of_stages([a, b])
    assert total.dynamic.tolist() == [4, 5]
    assert total.dense.tolist() == [7, 7]
    assert total.ratio.tolist() == [4 / 7, 5 / 7]
    assert total.maps == b.maps and total.stages == (a, b)


def test_float64_holds_every_multiply_add():
    cost = Cost.constant(2**50 + 1, 1, torch.device('cpu'))
    assert int(cost.dense.item()) == 2**50 + 1


def test_region_spread_tells_a_collapsed_router():
    def cost(share):
        flops = torch.ones(len(share), dtype=torch.float64)
        return Cost(flops, flops, (ComputeMap(share, 16),))

    share = torch.tensor(
        [[[1, 1], [1, 1]], [[1, 1 / 4], [1 / 16, 1 / 16]]], dtype=torch.float64
    )
    collapsed, spread = cost(share).region_spread
    assert collapsed == 0
    torch.testing.assert_close(spread, share[1].std(correction=0))
    assert cost(share).maps[0].mean.tolist() == [1, 11 / 32]
    assert Cost.constant(3, 2, share.device).region_spread.eq(0).all()


def test_detach_lets_go_of_the_graph():
    dynamic = torch.ones(2, dtype=torch.float64, requires_grad=True) * 2
    share = dynamic.view(2, 1, 1) / 2
    part = Cost(dynamic, torch.ones(2), (ComputeMap(share, 16),))
    detached = Cost.of_stages([part]).detach()
    for cost in (detached, *detached.stages):
        assert not cost.dynamic.requires_grad
        assert not cost.maps[0].share.requires_grad


def test_linear_cost():
    cost = LinearCost(2, 3) + LinearCost(5, 7)
    assert cost == LinearCost(7, 10) and cost.at(4) == 47


def test_padding_hides_no_collapsed_router():
    valid = torch.tensor([[[True, False]], [[True, True]]])
    share = torch.tensor([[[1, 1 / 16]]] * 2)
    found = ComputeMap(share, 16, '', valid)
    assert found.spread[0] == 0 and found.spread[1] > 0.4
    assert found.mean[0] == 1
