"""Token maps for routers, and what became of them."""

import torch


def textured(batch_size=4, size=32, dims=8):
    """Maps whose regions differ in variance, by image and by place."""
    scale = torch.rand(batch_size, size // 4, size // 4, 1).square() * 3
    scale = scale.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.randn(batch_size, size, size, dims) * scale


def shares(decision, num):
    return decision.choice.flatten().bincount(minlength=num) / (
        decision.choice.numel()
    )
