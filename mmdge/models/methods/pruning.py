"""DynamicViT: tokens that matter little are dropped, stage by stage.

Before some blocks a predictor scores the tokens that are left. In training
all tokens are computed, and attention is masked, so that the predictors get
a gradient; at test the dropped ones are not computed::

    tokens --predictor--> log-probabilities of keep and drop     score
    --top-k per image, or a price--> kept tokens                 decide
    --pack--> rows --block, block, block--> rows                 rows, update
    rows --scatter--> the map, where the dropped tokens keep
    their last features                                          scatter
    FLOPs of the rows, share of each token                       cost

Source: DynamicViT (Rao et al., NeurIPS 2021), section 3, and its official
code; that dropped tokens stay on the map, and may be taken up again, follows
SViT (Liu et al., WACV 2024).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from mmdge.utils import UserError, is_number

from ..cost import ComputeMap, Cost
from ..layers import TransformerBlock
from ..routing import Router
from ..routing.rows import pack, scatter, select
from .token_decisions import TokenDecisions


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    key_lengths: list[int],
    policy: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """Attention to kept keys, and of each token to itself.

    Source: DynamicViT, equation (10), with the official code's ``eps``; the
    maximum is over all keys and passes its gradient on. The mask multiplies
    the values, and the weights are divided by their sum at the end, which
    leaves few passes over ``T * T`` numbers. In float32 or finer.

    Args:
        q (Tensor): Queries of all tokens, ``(B * T, h, d)``.
        k (Tensor): Keys, likewise.
        v (Tensor): Values, likewise.
        lengths (list[int]): ``T`` for each image.
        key_lengths (list[int]): The same.
        policy (Tensor): 1 for kept tokens, else 0, ``(B, T)``.
        eps (float): Keeps rows without any key defined. Defaults to 1e-6.

    Returns:
        Tensor: ``(B * T, h, d)``.
    """
    dtype, exact = v.dtype, torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        # (B * T, h, d) -> (B, h, T, d)
        q, k, v = (
            x.unflatten(0, policy.shape).transpose(1, 2).to(exact)
            for x in (q, k, v)
        )
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        own = weights.diagonal(dim1=-2, dim2=-1)[..., None]  # (B, h, T, 1)
        gate = policy[:, None, :, None].to(exact)  # (B, 1, T, 1)
        own = own * (1 - gate)
        ones = torch.ones_like(v[..., :1])
        sums = weights @ (torch.cat([v, ones], -1) * gate)
        mean = v.mean(-2, keepdim=True)
        out = sums[..., :-1] + own * v + eps * mean
        out = out / (sums[..., -1:] + own + eps)
    return out.transpose(1, 2).flatten(0, 1).to(dtype)


class Pruning(TokenDecisions):
    """Drops tokens of an architecture whose stages keep them in one set."""

    def add_predictors(
        self,
        keep_ratio: float | Sequence[float],
        pruning_loc: Sequence[int],
        routing: str,
        amount: str,
        price: float,
        reactivate: bool,
        keep_features: bool,
    ) -> None:
        """Place predictors, arguments as of :class:`mmdge.DynamicViT`.

        Args:
            keep_ratio (float | Sequence[float]): See there.
            pruning_loc (Sequence[int]): See there.
            routing (str): See there.
            amount (str): See there.
            price (float): See there.
            reactivate (bool): See there.
            keep_features (bool): Leave dropped tokens as they are, for maps;
                else training updates them, though nobody sees them, as the
                official classifier does.
        """
        if len(self.stages) > 1 or self.stages[0][0].attn.sr_ratio > 1:
            raise UserError(
                'tokens can be dropped only where one stage keeps all of them '
                f'to the end, but {type(self).__name__} reduces their map.'
            )
        ratios = keep_ratio
        if is_number(keep_ratio):
            ratios = [keep_ratio ** (s + 1) for s in range(len(pruning_loc))]
        self.place_predictors(
            self.stages[0], pruning_loc, ratios, routing, amount, price
        )
        self.reactivate = reactivate
        self.keep_features = keep_features
        # A predictor goes with the block before which it decides.
        for number, router in zip(
            self.keep_ratios, self.score_predictor, strict=False
        ):
            router.requires_grad_(number >= self.frozen_stages)

    def run_blocks(
        self,
        stage: int,
        tokens: Tensor,
        size: tuple[int, int],
        mask: Tensor | None,
        keep: Collection[int],
    ) -> tuple[list[Tensor], Cost]:
        """See :class:`Backbone`."""
        if self.dense or not self.score_predictor:
            return super().run_blocks(stage, tokens, size, mask, keep)
        valid = self.valid_cells(mask, stage, size)  # (B, H, W)
        predictors = iter(self.score_predictor)
        num_tokens = tokens.shape[1]
        num_extra = num_tokens - size[0] * size[1]
        num_kept = num_tokens - num_extra  # where shapes are constant
        exact = torch.promote_types(tokens.dtype, torch.float32)
        kept = tokens.new_ones(tokens.shape[:2], dtype=exact)
        # In training all tokens are computed, at test the rows of those kept.
        rows = None
        if not self.training:
            (rows,) = select(kept > 0, lengths=[[num_tokens] * len(tokens)])
        packed = tokens.flatten(0, 1)  # (B, T, C) -> (B * T, C)
        outs, maps, dynamic, dense = [], [], 0, 0
        for number, block in enumerate(self.stages[stage]):
            ratio = self.keep_ratios.get(number)
            if ratio is not None:
                router = next(predictors)
                before, lengths, counts = num_kept, None, None
                num_kept = self.fixed_count(
                    router,
                    ratio,
                    num_tokens - num_extra,
                    num_tokens - num_extra if self.reactivate else before,
                )
                if num_kept is not None:
                    counts = before, num_kept
                    lengths = [[num_extra + num_kept] * len(tokens)]
                kept, num_scored = self._decide(
                    router, tokens, kept, valid, size, ratio, counts
                )
                dynamic = dynamic + router.flops().at(num_scored.double())
                if not self.training:
                    (rows,) = select(kept > 0, lengths=lengths)
                    packed = pack([tokens], [rows])
                maps.append(
                    ComputeMap(
                        kept[:, num_extra:].unflatten(1, size),
                        self.strides[stage],
                        block.name,
                        valid,
                        target=ratio if self.learns else None,
                    )
                )
            if self.training:
                policy = kept if maps else None
                body = partial(self._masked, policy=policy)
                tokens = block(tokens, size, body)
            else:
                body = partial(self.update_packed, lengths=rows.lengths)
                packed = block(packed, size, body)
                if number in keep or number + 1 in self.keep_ratios:
                    tokens = scatter(tokens, rows, packed)
            if number in keep:
                outs.append(tokens)
            num = kept.double().sum(1)
            flops = block.flops((num - num_extra, 1), num_extra)
            dynamic = dynamic + flops.at(num)
            flops = block.flops(size, num_extra)
            dense = dense + flops.at(tokens.shape[1])
        cost = Cost.constant(dense, len(tokens), tokens.device)
        return outs, Cost(dynamic, cost.dense, tuple(maps))

    def _decide(
        self,
        router: Router,
        tokens: Tensor,
        kept: Tensor,
        valid: Tensor | None,
        size: tuple[int, int],
        ratio: float,
        counts: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor]:
        """Which of all tokens to keep, ``(B, E + N)``; how many it looked at.

        The latter at test, ``(B,)``: in training it looks at all.
        """
        num_extra = tokens.shape[1] - size[0] * size[1]
        patches, before = tokens[:, num_extra:], kept[:, num_extra:]  # (B, N)
        gate, num_scored = self.decide_tokens(
            *(router, patches, before, valid, size, ratio),
            *(self.reactivate, counts),
        )
        return torch.cat([kept[:, :num_extra], gate], dim=1), num_scored

    def _masked(
        self,
        block: TransformerBlock,
        tokens: Tensor,
        size: tuple[int, int],
        policy: Tensor | None,
    ) -> Tensor:
        """Update all tokens, of which some are seen, ``policy (B, T)``."""
        if policy is None:
            return self.run(block.update_all, tokens, size)

        def update(tokens: Tensor, policy: Tensor) -> Tensor:
            context = block.prepare(tokens, size).context
            update = block.update(
                tokens.flatten(0, 1),
                context.key_lengths,
                context,
                attend=partial(masked_attention, policy=policy),
                normed=context.normed.flatten(0, 1),
            ).view_as(tokens)
            if self.keep_features:
                update = update * policy[..., None].to(update.dtype)
            return tokens + update

        return self.run(update, tokens, policy)
