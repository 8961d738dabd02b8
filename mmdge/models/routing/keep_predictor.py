"""DynamicViT's predictor: is a token worth computing?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cost import LinearCost
from ..layers.block import all_alike
from .quantiles import places
from .router import Router, add_gumbel_noise
from .rows import pack, scatter, select


class KeepPredictor(Router):
    """How likely each token is worth keeping.

    Source: DynamicViT, section 3.2; parameter names of the official code.

    Args:
        embed_dims (int): Channels ``C``, a multiple of 4.
        cost (Sequence[float]): Of the two candidates. Defaults to (1, 0):
            keep, drop.
        amount (str): ``'topk'``: a fixed part of each image; ``'price'``:
            what is worth it. Defaults to ``'topk'``.
        eps (float): Of the norm. Defaults to 1e-5.
        **kwargs: See :class:`Router`.
    """

    def __init__(
        self,
        embed_dims: int,
        cost: Sequence[float] = (1.0, 0.0),
        amount: str = 'topk',
        eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, cost, cell=1, **kwargs)
        self.adaptive = self.priced = amount == 'price'
        half, quarter = embed_dims // 2, embed_dims // 4
        self.in_conv = nn.Sequential(
            nn.LayerNorm(embed_dims, eps=eps),
            nn.Linear(embed_dims, embed_dims),
            nn.GELU(),
        )
        self.out_conv = nn.Sequential(
            nn.Linear(embed_dims, half),
            nn.GELU(),
            nn.Linear(half, quarter),
            nn.GELU(),
            nn.Linear(quarter, 2),
            nn.LogSoftmax(dim=-1),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See :class:`Router`; keep and drop start about even."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, rows: Tensor, lengths: Sequence[int], kept: Tensor
    ) -> Tensor:
        """Score rows, each beside the mean of those kept in its image.

        Args:
            rows (Tensor): Packed, image-major, ``(sum_b L_b, C)``.
            lengths (Sequence[int]): Rows of each image, ``L_b``.
            kept (Tensor): 1 where a row was kept so far, else 0, in training
                with its gradient, ``(sum_b L_b,)``.

        Returns:
            Tensor: Log-probabilities of keep and drop, ``(sum_b L_b, 2)``.
        """
        local, whole = self.in_conv(rows).chunk(2, dim=-1)
        whole = torch.cat([whole, torch.ones_like(whole[:, :1])], 1)
        whole = whole * kept[:, None]
        if all_alike(lengths):
            # (B * L, C) -> (B, L, C)
            sums = whole.unflatten(0, (len(lengths), lengths[0])).sum(1)
            mean = _mean(sums)[:, None].expand(-1, lengths[0], -1)
            mean = mean.flatten(0, 1)
            return self.out_conv(torch.cat([local, mean], dim=-1))
        counts = torch.tensor(lengths).to(rows.device, non_blocking=True)
        images = torch.arange(len(lengths), device=rows.device)
        image = images.repeat_interleave(counts, output_size=len(rows))
        sums = whole.new_zeros(len(lengths), whole.shape[1])
        mean = _mean(sums.index_add(0, image, whole))[image]
        return self.out_conv(torch.cat([local, mean], dim=-1))

    def flops(self) -> LinearCost:
        """See :class:`Router`; a cell is a token."""
        dims = self.embed_dims
        half, quarter = dims // 2, dims // 4
        return LinearCost(
            0, dims * dims + dims * half + half * quarter + quarter * 2
        )


def _mean(sums: Tensor) -> Tensor:
    """Of sums, the last of which is that of the weights, ``(B, C + 1)``.

    An image that has lost all its tokens has no mean.
    """
    return sums[:, :-1] / sums[:, -1:].clamp(min=1e-6)


def top(scores: Tensor, counts: Tensor, allowed: Tensor) -> Tensor:
    """The best ``counts (B,)`` of each image among ``allowed``, ``(B, N)``."""
    scores = scores.masked_fill(~allowed, -torch.inf)
    return places(-scores) < counts[:, None]


def predict(
    router: KeepPredictor,
    patches: Tensor,
    before: Tensor,
    allowed: Tensor | None,
    num_allowed: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gates ``(B, N)``, or scores where the amount is fixed.

    Of ``patches (B, N, C)``; at test only those ``allowed`` are scored, all
    if that is None. Where ``num_allowed`` is how many every image has, the
    amount is fixed.
    """
    batch_size, num = before.shape
    selected = None
    if router.training or allowed is None:
        rows, lengths = patches.flatten(0, 1), [num] * batch_size
        kept = before.flatten()
    else:  # what is out of question is not scored
        lengths = None
        if num_allowed is not None:
            lengths = [[num_allowed] * batch_size]
        (selected,) = select(allowed > 0, lengths=lengths)
        rows, lengths = pack([patches], [selected]), selected.lengths
        kept = before.flatten().index_select(0, selected.index)
    logits = router(rows.to(kept.dtype), lengths, kept)
    if router.training:
        logits = add_gumbel_noise(logits)
    if selected is not None:
        dropped = logits.new_tensor([-torch.inf, 0.0])
        dropped = dropped.expand(batch_size, num, 2)
        logits = scatter(dropped, selected, logits)
    logits = logits.view(batch_size, num, 2)
    fixed = num_allowed is not None or not router.adaptive
    if not router.training and fixed:
        return None, logits[..., 0]
    decision = router.decide(logits)
    if decision is None:
        return torch.ones_like(before), None
    if decision.gate is None:
        return decision.choice == 0, None
    return decision.gate[..., 0], None
