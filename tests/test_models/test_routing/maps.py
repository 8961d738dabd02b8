"""Token maps for routers, and what became of them."""

import torch


def grains(*sides):
    """Costs of granularities, and their region."""
    return [(sides[0] / side) ** 2 for side in sides], sides[-1]


GRAINS = grains(1, 2, 4)


def textured(batch_size=4, size=32, dims=8):
    """Maps whose regions differ in variance, by image and by place."""
    scale = torch.rand(batch_size, size // 4, size // 4, 1).square() * 3
    scale = scale.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.randn(batch_size, size, size, dims) * scale


def shares(decision, num):
    return decision.choice.flatten().bincount(minlength=num) / (
        decision.choice.numel()
    )
