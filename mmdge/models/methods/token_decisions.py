"""What methods share that decide token by token, before some blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdge.utils import UserError, is_number

from ..layers import Block
from ..routing import Router, build_router
from ..routing.keep_predictor import KeepPredictor, predict, top
from .base import Method


class TokenDecisions(Method):
    """Predictors before some blocks of one stage.

    Attributes:
        keep_ratios (dict[int, float]): Part of the tokens that is kept from
            which block on.
        score_predictor (nn.ModuleList): The predictors, or controls in their
            place; none if ``routing='finest'``.
        learns (bool): Whether they are predictors.
    """

    cells = [1]

    def place_predictors(
        self,
        blocks: Sequence[Block],
        pruning_loc: Sequence[int],
        keep_ratios: Sequence[float],
        routing: str,
        amount: str,
        price: float,
        cost: Sequence[float] = (1.0, 0.0),
        eps: float = 1e-5,
    ) -> None:
        """Make the predictors, arguments as of :class:`mmdge.DynamicViT`.

        Args:
            blocks (Sequence[Block]): Those of the stage.
            pruning_loc (Sequence[int]): See there.
            keep_ratios (Sequence[float]): One for each of them.
            routing (str): See there.
            amount (str): See there.
            price (float): See there.
            cost (Sequence[float]): Of the candidates. Defaults to (1, 0).
            eps (float): Of the predictors' norm. Defaults to 1e-5.
        """
        locations, depth = list(pruning_loc), len(blocks)
        if locations != sorted(set(locations) & set(range(depth))):
            raise UserError(
                f'pruning_loc={pruning_loc!r} must be ascending and among 0 '
                f'to {depth - 1}, the blocks.'
            )
        if len(keep_ratios) != len(locations) or not all(
            is_number(ratio) and 0 < ratio <= 1 for ratio in keep_ratios
        ):
            raise UserError(
                'keep_ratio must be one number in (0, 1] for each of '
                f'pruning_loc={pruning_loc}, or a number that leads to such, '
                f'but gives {list(keep_ratios)}.'
            )
        if amount not in ('topk', 'price'):
            raise UserError(
                f"amount must be 'topk' or 'price', but got {amount!r}."
            )
        self.keep_ratios = dict(zip(locations, keep_ratios, strict=True))
        self.learns = routing in ('learned', 'gumbel')
        dims = blocks[0].embed_dims

        def predictor() -> Router | None:
            if self.learns:
                return KeepPredictor(dims, cost, amount, eps, price=price)
            if routing not in ('random', 'uniform', 'finest', 'static'):
                raise UserError(
                    f"routing must be 'learned', 'random', 'uniform' or "
                    f"'finest', but got {routing!r}."
                )
            control = build_router(routing, dims, cost, 1, price)
            if control is not None:
                control.adaptive = control.priced = False
            return control

        made = filter(None, [predictor() for _ in locations])
        self.score_predictor = nn.ModuleList(made)

    def decide_tokens(
        self,
        router: Router,
        tokens: Tensor,
        before: Tensor,
        valid: Tensor | None,
        size: tuple[int, int],
        ratio: float,
        reactivate: bool,
        counts: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Which tokens to keep.

        Args:
            router (Router): A predictor, or a control.
            tokens (Tensor): Without extra ones, ``(B, N, C)``.
            before (Tensor): 1 for those kept so far, ``(B, N)``.
            valid (Tensor | None): Those that are no padding, ``(B, H, W)``.
            size (tuple[int, int]): ``(H, W)``.
            ratio (float): Part that is kept, where the router fixes it.
            reactivate (bool): Whether what was dropped may be kept again.
            counts (tuple[int, int], optional): Of every image, how many were
                kept so far, and how many are now, see :meth:`fixed_count`.

        Returns:
            tuple[Tensor, Tensor]: 1 for those kept, ``(B, N)``, with its
            gradient where one is wanted; at how many it looked at test,
            ``(B,)`` (in training, and where any may be kept, at all).
        """
        kept, inside = before, torch.ones_like(before)
        ones = inside
        if valid is not None:
            inside = valid.flatten(1).to(before)
            before = before * inside
        allowed = inside if reactivate else before
        if counts is not None:  # padding counts, though it comes last
            allowed = ones if reactivate else kept
        with torch.autocast(tokens.device.type, enabled=False):
            if self.learns:
                looked_at = None if reactivate else allowed
                num = None if counts is None else counts[0]
                gate, scores = predict(router, tokens, before, looked_at, num)
            else:
                grid = tokens.unflatten(1, size)  # (B, H, W, C)
                everywhere = inside.view(grid.shape[:3]) > 0
                gate, scores = None, router.ranks(grid, everywhere).flatten(1)
        if gate is None:
            share = ratio + (1 - router.progress) * (1 - ratio)
            # A tensor, because exported numbers are rounded to float32.
            share = torch.tensor(share, dtype=torch.float64)
            most = (inside.sum(1).double() * share).long()
            if counts is not None:
                most = torch.full_like(most, counts[1])
                least = torch.finfo(scores.dtype).min
                scores = scores.nan_to_num(neginf=-torch.inf)
                scores = scores.masked_fill(inside == 0, least)
            gate = top(scores, most, allowed > 0)
        num_scored = ones if reactivate else allowed
        return (gate * allowed).to(before.dtype), num_scored.sum(1)

    def fixed_count(
        self, router: Router, ratio: float, num: int, before: int
    ) -> int | None:
        """How many tokens of every image are kept, if shapes are constant.

        Args:
            router (Router): A predictor, or a control.
            ratio (float): Part that is kept, unless the router has
                :attr:`Router.fixed_shares`.
            num (int): Tokens of an image, padding too.
            before (int): Those of them that may be kept.
        """
        if self.training or not self.constant_shapes:
            return None
        if router.fixed_shares is not None:
            ratio = router.fixed_shares[0]
        return min(before, int(num * ratio))
