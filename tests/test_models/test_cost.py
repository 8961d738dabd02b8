"""The record of what ran."""

import torch

from mmdge.models.cost import Cost, GranularityMap, LinearCost


def test_costs_add_up():
    a = Cost.constant(3, 2, torch.device('cpu'))
    b = Cost(
        dynamic=torch.tensor([1.0, 2.0], dtype=torch.float64),
        dense=torch.tensor([4.0, 4.0], dtype=torch.float64),
        maps=(GranularityMap(torch.ones(2, 1, 1), 16, 'block1.0'),),
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
    def cost(granularity):
        flops = torch.ones(len(granularity), dtype=torch.float64)
        return Cost(flops, flops, (GranularityMap(granularity, 16),))

    maps = torch.tensor([[[1, 1], [1, 1]], [[1, 2], [4, 4]]])
    collapsed, spread = cost(maps).region_spread
    assert collapsed == 0
    values = torch.tensor([1, 1 / 4, 1 / 16, 1 / 16], dtype=torch.float64)
    torch.testing.assert_close(spread, values.std(correction=0))


def test_detach_lets_go_of_the_graph():
    dynamic = torch.ones(2, dtype=torch.float64, requires_grad=True) * 2
    cost = Cost.of_stages(
        [
            Cost(dynamic, torch.ones(2)),
        ]
    )
    detached = cost.detach()
    assert not detached.dynamic.requires_grad
    assert not detached.stages[0].dynamic.requires_grad


def test_linear_cost():
    cost = LinearCost(2, 3) + LinearCost(5, 7)
    assert cost == LinearCost(7, 10) and cost.at(4) == 47


def test_padding_hides_no_collapsed_router():
    content = torch.tensor([[[True, False]], [[True, True]]])
    maps = GranularityMap(torch.tensor([[[1, 4]]] * 2), 16, '', content)
    assert maps.spread[0] == 0 and maps.spread[1] > 0.4
