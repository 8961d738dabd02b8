"""CF-ViT: a pass on the half-size image, and one on what is worth it.

All blocks run on the tokens of the half-size image. Images that are sure of
their class leave; of the others the regions that the cls token attends to are
split into their four tokens, and the same blocks run again, on the fine and
the coarse tokens together::

    half-size image --block, block--> coarse tokens, attention      score
    confidence --> go on or stop; top-k per image --> split or not  decide
    fine tokens + reuse(coarse tokens), coarse ones --pack--> rows  rows
    rows --block, block--> rows                                     update
    rows --head--> logits, or --copy--> the map                     scatter
    FLOPs of both passes, share of each region and image            cost

The mixed sequence is that of :class:`MixedPatches`, which is its untrained
form. Source: CF-ViT (Chen et al., AAAI 2023), and its official code, from
which the fine positions differ: there DeiT gets none as long as no regions
are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError, is_number

from ..cost import ComputeMap, Cost
from ..layers import TransformerBlock, add
from ..layers.block import all_alike
from ..layers.transformer import MLP, packed_attention
from ..routing import AttentionRouter, ConfidenceRouter, Grains, build_router
from ..routing.fixed_shares import choose_shares_of_map
from ..routing.granularity import Size, patch_grid, unpool
from ..routing.keep_predictor import top
from .mixing import SIDES, MixedSequence

BETA = 0.99  # of the attention that is remembered from block to block


def cls_attention(q: Tensor, k: Tensor, num_images: int) -> Tensor:
    """How much the first token of each image attends to all, ``(B, T)``.

    Averaged over heads, in float32 or finer, without a gradient.

    Args:
        q (Tensor): Queries of all tokens, ``(B * T, h, d)``.
        k (Tensor): Keys, likewise.
        num_images (int): ``B``.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        q, k = (x.unflatten(0, (num_images, -1)).to(exact) for x in (q, k))
        first = q[:, 0, :, None] * q.shape[-1] ** -0.5  # (B, h, 1, d)
        logits = first @ k.permute(0, 2, 3, 1)  # (B, h, 1, T)
        return logits.softmax(-1)[:, :, 0].mean(1)


class Reuse(nn.Sequential):
    """What the coarse pass saw, for fine tokens; official parameter names.

    Its last layer starts at 0, where the official code starts it as any
    other: so a plain ViT's weights start as mixed patches.

    Args:
        embed_dims (int): Channels ``C``.
        hidden_dims (int): Channels of the MLP.
        eps (float): Of the norm.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, eps: float) -> None:
        norm = nn.LayerNorm(embed_dims, eps=eps)
        super().__init__(norm, MLP(embed_dims, hidden_dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the blocks are; what it gives is 0."""
        norm, mlp = self
        norm.reset_parameters()
        nn.init.trunc_normal_(mlp.fc1.weight, std=0.02)
        for parameter in (mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias):
            nn.init.zeros_(parameter)


class Look(NamedTuple):
    """What the coarse pass gave, and what is decided by it.

    Attributes:
        tokens (Tensor): Coarse tokens before the blocks, ``(B, E + R, C)``.
        normed (Tensor): The same after them, and after the final norm.
        score (Tensor | None): Attention to each region, ``(B, Rh, Rw)``;
            None if nothing asks for it.
        chosen (Tensor): 0 for a region that is split, 1 for one that stays
            coarse, ``(B, Rh, Rw)``.
        shares (tuple[float, float] | None): Of both, where shapes are
            constant.
        logits (Tensor | None): Of the coarse pass, ``(B, K)``.
        going (Tensor | None): Images that go on, ascending, ``(b,)``; None if
            all do.
        size (tuple[int, int]): Of the map of fine tokens, ``(H, W)``.
        cost (Cost): Of both passes, the second known by formula.
    """

    tokens: Tensor
    normed: Tensor
    score: Tensor | None
    chosen: Tensor
    shares: tuple[float, float] | None
    logits: Tensor | None
    going: Tensor | None
    size: Size
    cost: Cost


class CoarseToFine(MixedSequence):
    """Two passes of a ViT, the second on what the first found worth it.

    Attributes:
        alpha (float): Part of an image's regions that is split.
        attention_from (int): The first block whose attention counts.
        num_classes (int | None): See :class:`mmdge.CFViT`.
        router (Router | None): Which regions are split.
        exit_router (ConfidenceRouter | None): Which images go on.
    """

    num_classes: int | None = None
    coarse_scale = 1.0  # of the coarse pass's logits

    def add_coarse_pass(
        self,
        alpha: float,
        routing: str | dict,
        price: float,
        num_classes: int | None,
        attention_from: int,
    ) -> None:
        """Make routers and parts, arguments as of :class:`mmdge.CFViT`."""
        self.check_one_set()
        if not is_number(alpha) or not 0 < alpha <= 1:
            raise UserError(
                'alpha, the part of the regions that is split, must be in '
                f'(0, 1], but got {alpha!r}.'
            )
        if not _is_count(attention_from):
            raise UserError(
                f'attention_from={attention_from!r} must be a block, counted '
                'from 0.'
            )
        if not is_number(price) or not 0 <= price <= 1:
            raise UserError(
                'price = 1 - eta must be in [0, 1], where eta is the '
                'confidence with which an image leaves after the coarse pass, '
                f'but got {price!r}.'
            )
        if price and num_classes is None:
            raise UserError(
                f'price={price!r} is for images that leave when they are sure '
                'of their class: set num_classes, or leave the price at 0.'
            )
        self.alpha, self.num_classes = alpha, num_classes
        dims, depth = self.arch['embed_dims'], self.arch['num_layers']
        self.attention_from = min(attention_from, len(self.blocks) - 1)
        self.exit_router = None
        self.router = self._make_router(routing, dims)
        if self.router is not None:
            self.coarse_pos_size = patch_grid(self.pos_size, SIDES[-1])
            num_extra = self.pos_embed.shape[1] - math.prod(self.pos_size)
            num_positions = num_extra + math.prod(self.coarse_pos_size)
            self.coarse_pos_embed = nn.Parameter(
                torch.empty(1, num_positions, dims)
            )
            nn.init.trunc_normal_(self.coarse_pos_embed, std=0.02)
            if self.frozen_stages > 0:
                self.coarse_pos_embed.requires_grad_(False)
            self.reuse_block = Reuse(
                dims,
                self.arch['feedforward_channels'],
                self.blocks[0].norm1.eps,
            )
        if num_classes is not None:
            if not _is_count(num_classes) or num_classes < 1:
                raise UserError(
                    'num_classes must be an integer of at least 1, or None, '
                    f'but got {num_classes!r}.'
                )
            if self.distilled or self.out_indices != (depth - 1,):
                raise UserError(
                    f'num_classes={num_classes} is for the last block and one '
                    f'cls token, not for out_indices={self.out_indices}, '
                    f'distilled={self.distilled}.'
                )
            self._add_heads(dims, num_classes)
            if self.router is not None:
                self.exit_router = ConfidenceRouter(
                    num_classes, (1.0, 0.0), 1, price=price
                )
        for module in self.frozen_modules():
            module.requires_grad_(False)

    @property
    def varying(self) -> str:
        """See :class:`Method`."""
        if self.exit_router is None or not self.exit_router.price:
            return ''
        return (
            'images that are sure of their class leave early; at a price of 0 '
            'none does'
        )

    def _make_router(self, routing: str | dict, dims: int) -> nn.Module | None:
        cost = [side**-2 for side in SIDES]
        if routing == 'attention':
            return AttentionRouter(dims, cost, SIDES[-1])
        if routing not in ('random', 'uniform', 'finest', 'static'):
            raise UserError(
                "routing must be 'attention', 'random', 'uniform' or "
                f"'finest', but got {routing!r}."
            )
        control = build_router(routing, dims, cost, SIDES[-1])
        if control is not None:
            control.adaptive = control.priced = False
        return control

    def _add_heads(self, dims: int, num_classes: int) -> None:
        self.head = Classifier(dims, num_classes)

    def classify(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, K)`` of normed tokens ``(B, T, C)``."""
        return self.head(tokens[:, 0])

    def head_flops(self, num_rows: Tensor | int) -> Tensor | int:
        """Multiply-adds of the classifiers, of an image of so many rows."""
        return self.arch['embed_dims'] * self.num_classes

    def frozen_modules(self) -> list[nn.Module]:
        """See :class:`Backbone`; a classifier is always trained."""
        modules = super().frozen_modules()
        if self.frozen_stages >= len(self.blocks):
            parts = dict(self.named_children())  # there is none at first
            modules += [parts[name] for name in parts if name == 'reuse_block']
        return modules

    def reset_parts(self) -> None:
        """See :class:`Backbone`; what is reused is 0 at first."""
        super().reset_parts()
        if self.router is not None:
            self.reuse_block.reset_parameters()

    def new_parts(self) -> dict[str, nn.Module]:
        """See :class:`Backbone`; the classifiers, too."""
        names = ('reuse_block', 'head', 'aux_head')
        parts = dict(self.named_children())
        own = {name: parts[name] for name in names if name in parts}
        return super().new_parts() | own

    def pos_embeds(self) -> dict[str, tuple[Size, str]]:
        """See :class:`Backbone`."""
        found = super().pos_embeds()
        if self.router is not None:
            mode = self.interpolate_mode
            found['coarse_pos_embed'] = self.coarse_pos_size, mode
        return found

    def adopt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`Backbone`; coarse positions are those of a plain ViT."""
        if self.router is None or 'pos_embed' not in state:
            return dict(state)
        return {'coarse_pos_embed': state['pos_embed'], **state}

    def ratios(self, x: Tensor) -> Tensor:
        """See :class:`Backbone`; the coarse pass decides all."""
        if self.dense or self.router is None:
            return super().ratios(x)
        return self.look(x).cost.ratio

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs and set :attr:`cost`.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``, any size.

        Returns:
            tuple: See :class:`mmdge.CFViT`.
        """
        if self.dense or self.router is None:
            outs = super().forward(x)
            if self.num_classes is None:
                return outs
            flops = Cost.constant(self._dense_head(x), len(x), x.device)
            self.cost = Cost.of_stages([Cost.add_up([self.cost, flops])])
            return outs * 2  # no coarse pass: twice the same logits
        self.check_images(x)
        look = self.look(x)
        self.cost = Cost.of_stages([look.cost])
        if self.num_classes is None:
            return self._maps(x, look)
        if look.going is None:
            return look.logits, self._fine_logits(x, look)
        logits = look.logits
        if len(look.going):
            images, tokens, normed, chosen = (
                part.index_select(0, look.going)
                for part in (x, look.tokens, look.normed, look.chosen)
            )
            rest = look._replace(tokens=tokens, normed=normed, chosen=chosen)
            fine = self._fine_logits(images, rest)
            logits = logits.index_copy(0, look.going, fine.to(logits.dtype))
        return look.logits, logits

    def look(self, x: Tensor) -> Look:
        """Run the coarse pass, and decide.

        In training all images go on.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``.
        """
        mask = self.valid_mask(x)
        size = patch_grid(x.shape[2:], self.patch_size)
        whole, grid = self.whole_regions(x)
        half = F.interpolate(
            whole,
            size=[side // SIDES[-1] for side in whole.shape[2:]],
            mode='bilinear',
            align_corners=True,
        )
        patches, _ = self.patch_embed(half)
        tokens = self.with_positions(
            patches, grid, self.coarse_pos_embed, self.coarse_pos_size
        )
        normed, score = self._coarse_blocks(tokens, grid)
        valid = self.valid_cells(mask, 0, grid)
        shares = None
        if self.constant_shapes and not self.training:
            num = math.prod(grid)
            share = math.ceil(num * self.alpha - 1e-9) / num
            shares = share, 1 - share
        chosen = self._choose(
            patches.unflatten(1, grid), score, valid, size, shares
        )
        logits = going = goes = None
        if self.num_classes is not None:
            logits = self.classify(normed) * self.coarse_scale
            goes = torch.ones_like(logits[:, 0], dtype=torch.bool)
            if not self.training and self.exit_router.price:
                goes = self.exit_router.goes(logits)
                going = goes.nonzero().squeeze(1)
                going = None if len(going) == len(x) else going
        cost = self._cost(x, size, chosen, goes, valid)
        return Look(
            *(tokens, normed, score, chosen, shares, logits, going, size, cost)
        )

    def _coarse_blocks(
        self, tokens: Tensor, grid: Size
    ) -> tuple[Tensor, Tensor | None]:
        """All blocks on ``(B, E + R, C)``; normed, and the attention."""
        score = None
        for number, block in enumerate(self.blocks):
            if self._scores(number):
                tokens, row = block(tokens, grid, self._watched)
                score = row if score is None else BETA * score + row
            else:
                tokens = self.run(block, tokens, grid)
        if score is not None:
            num_extra = tokens.shape[1] - math.prod(grid)
            score = (1 - BETA) * score[:, num_extra:].unflatten(1, grid)
        return self.norm(tokens), score

    def _scores(self, number: int) -> bool:
        """Whether the attention of a block counts."""
        asked = isinstance(self.router, AttentionRouter)
        return asked and number >= self.attention_from

    def _watched(
        self, block: TransformerBlock, tokens: Tensor, size: Size
    ) -> tuple[Tensor, Tensor]:
        """Update all tokens; also the attention of the first, ``(B, T)``."""

        def update(tokens: Tensor) -> tuple[Tensor, Tensor]:
            seen = []

            def attend(q: Tensor, k: Tensor, *rest) -> Tensor:
                seen.append(cls_attention(q, k, len(tokens)))
                return packed_attention(q, k, *rest)

            prepared = block.prepare(tokens, size)
            update = block.update_prepared(prepared, size, attend)
            return add(tokens, update, out=update), *seen

        return self.run(update, tokens)

    def _choose(
        self,
        patches: Tensor,
        score: Tensor | None,
        valid: Tensor,
        size: Size,
        shares: tuple[float, float] | None,
    ) -> Tensor:
        """Split the best of each image's regions, exactly as many as asked.

        Args:
            patches (Tensor): Coarse, ``(B, Rh, Rw, C)``.
            score (Tensor | None): ``(B, Rh, Rw)``.
            valid (Tensor): Likewise; padding is not split, and no part.
            size (tuple[int, int]): Of the map of fine tokens.
            shares (tuple[float, float], optional): See :class:`Look`; with
                them padding is a part, and split last.
        """
        seen = patches if score is None else score[..., None]
        ranks = self.router.ranks(seen, valid)
        if shares is not None:
            logits = torch.stack([ranks, torch.zeros_like(ranks)], -1)
            return choose_shares_of_map(logits, shares, size, SIDES[-1], valid)
        share = self.alpha + (1 - self.router.progress) * (1 - self.alpha)
        # A tensor, because exported numbers are rounded to float32.
        share = torch.tensor(share, dtype=torch.float64)
        counts = (valid.sum((1, 2)).double() * share - 1e-9).ceil()
        split = top(ranks.flatten(1), counts, valid.flatten(1))
        return (~split).long().view_as(valid)

    def _cost(
        self,
        x: Tensor,
        size: Size,
        chosen: Tensor,
        goes: Tensor | None,
        valid: Tensor,
    ) -> Cost:
        """What runs, and will run, for each image."""
        grid = chosen.shape[1:]
        grains = Grains(size, SIDES, self.num_extra_tokens)
        extra, dims = self.num_extra_tokens, self.arch['embed_dims']
        num_coarse, num_fine = extra + math.prod(grid), extra + math.prod(size)
        coarse = self.patch_embed.flops(grid)
        dense = embedding = self.patch_embed.flops(size)
        for number, block in enumerate(self.blocks):
            coarse += block.flops(grid, extra).at(num_coarse)
            coarse += num_coarse * dims * self._scores(number)
            dense += block.flops(size, extra).at(num_fine)
        # (B, Rh, Rw, K) -> (B, Rh, Rw, 1)
        rows = grains.row_counts(x.device).expand(*chosen.shape, -1)
        rows = rows.gather(-1, chosen[..., None]).sum((1, 2, 3)) + extra
        fine = self.mixed_flops(rows, extra) + embedding
        reuse = self.reuse_block[1].flops(grid)
        fine = fine + reuse.at(math.prod(grid))
        if self.num_classes is not None:
            coarse = coarse + self.head_flops(num_coarse)
            fine = fine + self.head_flops(rows)
            dense = dense + self._dense_head(x)
        cost = Cost.constant(dense, len(x), x.device)
        shares = grains.shares(x.device)[chosen]
        if goes is None:
            goes = torch.ones_like(rows, dtype=torch.bool)
        maps = [
            ComputeMap(
                shares.where(goes[:, None, None], SIDES[-1] ** -2),
                self.strides[0] * SIDES[-1],
                'split',
                valid,
            )
        ]
        if self.exit_router is not None:
            share = torch.where(goes, 1.0, coarse / (coarse + fine))
            share = share[:, None, None]  # (B, 1, 1): the image is the cell
            maps.append(
                ComputeMap(
                    share, max(x.shape[2:]), 'exit', torch.ones_like(share) > 0
                )
            )
        return Cost(coarse + goes * fine, cost.dense, tuple(maps))

    def _dense_head(self, x: Tensor) -> int:
        size = patch_grid(x.shape[2:], self.patch_size)
        return self.head_flops(self.num_extra_tokens + math.prod(size))

    def fine_tokens(self, x: Tensor, look: Look) -> Tensor:
        """Fine tokens of images, and what the coarse pass saw of them.

        Args:
            x (Tensor): ``(B, in_channels, H, W)``.
            look (Look): Of these images.

        Returns:
            Tensor: ``(B, E + N, C)``.
        """
        tokens, size = self.embed(x)
        grid = look.chosen.shape[1:]
        num_extra = tokens.shape[1] - math.prod(size)
        seen = self.reuse_block(look.normed[:, num_extra:].flatten(0, 1))
        seen = seen.unflatten(0, (len(x), *grid))  # (B, Rh, Rw, C)
        seen = unpool(seen, SIDES[-1], size).flatten(1, 2)  # (B, N, C)
        extra, patches = tokens.tensor_split([num_extra], 1)
        return torch.cat([extra, patches + seen], 1)

    def _mixed(self, x: Tensor, look: Look) -> tuple:
        grains = Grains(look.size, SIDES, self.num_extra_tokens)
        return self.run_mixed(
            self.fine_tokens(x, look),
            look.tokens[:, self.num_extra_tokens :],
            look.chosen,
            grains,
            self.out_indices,
            shares=look.shares,
        )

    def _maps(self, x: Tensor, look: Look) -> tuple[Tensor, ...]:
        outs, choice = self._mixed(x, look)
        first = 0 if self.apply_layernorm else -1
        outs[first:] = map(self.norm, outs[first:])
        return tuple(self._format(choice.unpool(o), look.size) for o in outs)

    def _fine_logits(self, x: Tensor, look: Look) -> Tensor:
        (rows,), choice = self._mixed(x, look)
        rows, lengths = self.norm(rows), choice.lengths
        if all_alike(lengths):  # (B * L, C) -> (B, L, C)
            return self.classify(rows.unflatten(0, (len(x), -1)))
        images = [rows[None] for rows in rows.split(lengths)]
        return torch.cat([self.classify(tokens) for tokens in images])

    def _format(
        self, tokens: Tensor, size: Size
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.num_classes is None:
            return super()._format(tokens, size)
        return self.classify(tokens)


class DenseLabels(CoarseToFine):
    """Patches are classified too, and the best of them counts a quarter.

    As LV-ViT; the coarse pass's logits are divided by what the weights add
    up to.
    """

    aux_weight = 0.25
    coarse_scale = 1 / (1 + aux_weight)

    def _add_heads(self, dims: int, num_classes: int) -> None:
        super()._add_heads(dims, num_classes)
        self.aux_head = Classifier(dims, num_classes)

    def classify(self, tokens: Tensor) -> Tensor:
        """See :class:`CoarseToFine`."""
        best = self.aux_head(tokens[:, self.num_extra_tokens :]).amax(1)
        return super().classify(tokens) + self.aux_weight * best

    def head_flops(self, num_rows: Tensor | int) -> Tensor | int:
        """See :class:`CoarseToFine`."""
        num_scored = 1 + num_rows - self.num_extra_tokens
        return super().head_flops(num_rows) * num_scored


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


class Classifier(nn.Linear):
    """A linear layer that starts as the official code's."""

    def reset_parameters(self) -> None:
        """Start small, without a preference."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
