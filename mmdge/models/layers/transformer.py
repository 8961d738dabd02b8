"""The encoder block: what all tokens need, and what works row by row.

``prepare`` computes keys and values from all tokens; ``update`` says what the
block adds to any rows, packed over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdge.utils import UserError

from ..cost import LinearCost
from .block import (
    Block,
    MapLayer,
    OnMap,
    Prepared,
    Size,
    add,
    all_alike,
    on_full_map,
)
from .embeddings import pad_to_patch

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None

# Hidden channels, in bytes, that a CPU computes together in inference. More
# would not stay in its caches, and from about 32 MB on the C library fetches
# them as fresh pages each time, which takes longer than the products.
CACHE_BYTES = 4 * 2**20


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    key_lengths: list[int],
    key_bias: Tensor | None = None,
) -> Tensor:
    """Attention of packed queries to their own image's keys and values.

    Exact and without padding: images with equally many queries, and keys,
    run as one batch, others in one call where PyTorch has a kernel for it,
    or else one after the other.

    Args:
        q (Tensor): Packed queries, image-major, ``(sum_b L_b, h, d)``.
        k (Tensor): Packed keys, ``(sum_b T_b, h, d)``.
        v (Tensor): Values, like ``k``.
        lengths (list[int]): Number of queries of each image, ``L_b``.
        key_lengths (list[int]): Number of keys of each image, ``T_b``.
        key_bias (Tensor, optional): Added to each key's logits,
            ``(sum_b T_b,)``. Defaults to None: nothing.

    Returns:
        Tensor: ``(sum_b L_b, h, d)``.
    """
    num_images = len(lengths)
    if all_alike(lengths) and all_alike(key_lengths):
        if torch.compiler.is_compiling():  # one image may have unknown many
            torch._check(lengths[0] > 0)
            torch._check(key_lengths[0] > 0)
        # (B * L, h, d) -> (B, L, h, d)
        q = q.unflatten(0, (num_images, lengths[0]))
        k, v = (x.unflatten(0, (num_images, key_lengths[0])) for x in (k, v))
        if key_bias is not None:
            key_bias = key_bias.view(num_images, 1, 1, -1)
        return _attention(q, k, v, key_bias).flatten(0, 1)
    if key_bias is None and can_use_varlen(q):
        return varlen_attn(
            q,
            k.contiguous(),
            v.contiguous(),
            *(_ends(n, q.device) for n in (lengths, key_lengths)),
            max(lengths),
            max(key_lengths),
        )
    biases = [None] * num_images
    if key_bias is not None:
        biases = key_bias[None, None, None].split(key_lengths, dim=-1)
    images = zip(
        q.split(lengths), k.split(key_lengths), v.split(key_lengths), biases,
        strict=True,
    )  # fmt: skip
    outs = [
        _attention(*(x[None] for x in qkv), bias)[0]
        for *qkv, bias in images
        if len(qkv[0])
    ]
    return torch.cat(outs)


def can_use_varlen(q: Tensor) -> bool:
    """Whether PyTorch has a kernel for sequences of unequal length.

    It has from 2.10 on, for half precision on NVIDIA GPUs that know
    bfloat16, and for heads of at most 256 channels, in eights. Where flash
    attention is switched off, as for counting FLOPs, so is this.
    """
    return (
        varlen_attn is not None
        and q.is_cuda
        and torch.version.hip is None
        and q.dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cuda.flash_sdp_enabled()
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of ``(B, L, h, d)`` to ``(B, T, h, d)``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(1, 2)


def _ends(lengths: list[int], device: torch.device) -> Tensor:
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return ends.to(device, non_blocking=True)


class SpatialReductionAttention(nn.Module):
    """Multi-head attention with PVT's reduction of the keys and values.

    Source: PVT (Wang et al., ICCV 2021), section 3.3; parameter names of the
    official code, so that its checkpoints fit. ``sr_ratio=1`` is plain
    attention.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads; must divide ``embed_dims``.
        sr_ratio (int): Side of the patch of tokens that becomes one key and
            value. Defaults to 1.
        qkv_bias (bool): Add biases to queries, keys and values. Defaults to
            True.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise UserError(
                f'embed_dims={embed_dims} must be a multiple of '
                f'num_heads={num_heads}.'
            )
        # The formulae read these, not layers that an adapter may replace.
        self.embed_dims = embed_dims
        self.num_heads, self.head_dims = num_heads, embed_dims // num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        if sr_ratio > 1:
            # Channels last, as the tokens are: their map needs no copy.
            self.sr = nn.Conv2d(
                embed_dims, embed_dims, sr_ratio, stride=sr_ratio
            ).to(memory_format=torch.channels_last)
            self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def reduced_size(self, size: Size) -> Size:
        """Height and width of the keys' map for a token map of ``size``.

        Floors as PVT does, so the last rows and columns of a map that the
        ratio doesn't divide are no keys; but at least one key is left.
        """
        if self.sr_ratio == 1:
            return size
        return tuple(max(1, side // self.sr_ratio) for side in size)

    def reduce(self, x: Tensor, size: Size) -> Tensor:
        """Reduce the spatial tokens ``(B, E + N, C)`` to ``(B, E + T, C)``."""
        if self.sr_ratio == 1:
            return x
        height, width = size
        extra, tokens = x.tensor_split([x.shape[1] - height * width], dim=1)
        # (B, H * W, C) -> (B, C, H, W)
        image = tokens.unflatten(1, size).permute(0, 3, 1, 2)
        reduced = self.sr(pad_to_patch(image, self.sr_ratio))
        reduced = self.norm(reduced.flatten(2).transpose(1, 2))
        return (
            torch.cat([extra, reduced], dim=1) if extra.shape[1] else reduced
        )

    def forward(
        self,
        x: Tensor,
        size: Size | None = None,
        context: Context | None = None,
        lengths: list[int] | None = None,
        attend: Callable = packed_attention,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Make keys and values, or attend to them: both, because of FSDP.

        Args:
            x (Tensor): Normed tokens ``(B, E + N, C)`` of a map of ``size``,
                or rows ``(sum_b L_b, C)``.
            size (tuple[int, int], optional): Where keys are to be reduced.
            context (Context, optional): What rows attend to.
            lengths (list[int], optional): Rows of each image.
            attend (Callable): See :meth:`TransformerBlock.update`.

        Returns:
            Tensor | tuple[Tensor, Tensor]: Without a context keys and values,
            ``(sum_b T_b, h, d)`` each; else the rows' attention.
        """
        heads = self.num_heads, self.head_dims
        if context is None:
            x = x if size is None else self.reduce(x, size)
            return self.kv(x).view(-1, 2, *heads).unbind(1)
        out = attend(
            self.q(x).view(-1, *heads),
            context.keys,
            context.values,
            lengths,
            context.key_lengths,
        )
        return self.proj(out.flatten(1))

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """Multiply-adds of one image.

        Keys and values are paid for once; a row pays for its two projections
        and its products with all keys and all values.
        """
        reduced = self.reduced_size(size)
        tokens = reduced[0] * reduced[1]
        sr_flops = tokens * self.sr_ratio**2 * self.embed_dims**2
        num_keys, dims = num_extra + tokens, self.embed_dims
        return LinearCost(
            2 * num_keys * dims**2 + (sr_flops if self.sr_ratio > 1 else 0),
            2 * dims**2 + 2 * num_keys * dims,
        )


def num_parts(x: Tensor, hidden_dims: int) -> int:
    """In how many parts rows ``(L, C)`` of so many hidden channels run.

    One on a GPU, where gradients are wanted, and in an exported graph.
    """
    if (
        x.device.type != 'cpu'
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return 1
    return max(1, -(-len(x) * hidden_dims * x.element_size() // CACHE_BYTES))


def in_parts(
    fn: Callable[[Tensor], Tensor], x: Tensor, hidden_dims: int
) -> Tensor:
    """Apply ``fn``, row by row, to ``(L, C)`` in :func:`num_parts`."""
    parts = num_parts(x, hidden_dims)
    if parts == 1:
        return fn(x)
    return torch.cat([fn(part) for part in x.tensor_split(parts)])


class PooledAttention(SpatialReductionAttention):
    """Attention to 7 x 7 keys and values, whatever the size of the map.

    Source: PVTv2 (Wang et al., CVMJ 2022), "linear" attention.
    """

    key_grid = (7, 7)

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__(embed_dims, num_heads)
        self.sr = nn.Conv2d(embed_dims, embed_dims, 1)
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def reduced_size(self, size: Size) -> Size:
        """Height and width of the keys' map."""
        return self.key_grid

    def reduce(self, x: Tensor, size: Size) -> Tensor:
        """Reduce the tokens ``(B, H * W, C)`` to ``(B, 49, C)``."""
        # (B, H * W, C) -> (B, C, H, W)
        image = x.unflatten(1, size).permute(0, 3, 1, 2)
        pooled = self.sr(F.adaptive_avg_pool2d(image, self.key_grid))
        return F.gelu(self.norm(pooled.flatten(2).transpose(1, 2)))

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """See :class:`SpatialReductionAttention`."""
        sr_flops = math.prod(self.key_grid) * self.embed_dims**2
        return LinearCost(sr_flops, 0) + super().flops(size, num_extra)


class MLP(nn.Module):
    """Linear, GELU, linear, on packed rows.

    Args:
        embed_dims (int): Channels ``C``.
        hidden_dims (int): Channels in between.
    """

    num_inputs = 1  # products that make the hidden channels

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.hidden_dims = hidden_dims
        self._add_layers()

    def _add_layers(self) -> None:
        self.fc1 = nn.Linear(self.embed_dims, self.hidden_dims)
        self.fc2 = nn.Linear(self.hidden_dims, self.embed_dims)

    def forward(self, x: Tensor, on_map: OnMap | None = None) -> Tensor:
        """Map ``(L, C)`` to ``(L, C)``; ``on_map`` is of no use here."""
        return in_parts(self._rows, x, self.num_inputs * self.hidden_dims)

    def _rows(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def num_parts(self, x: Tensor) -> int:
        """In how many parts rows ``(L, C)`` run, see :func:`num_parts`."""
        return num_parts(x, self.num_inputs * self.hidden_dims)

    def flops(self, size: Size) -> LinearCost:
        """Multiply-adds, of a map of ``size``: all are paid per row."""
        products = self.num_inputs + 1
        return LinearCost(0, products * self.embed_dims * self.hidden_dims)


class SwiGLU(MLP):
    """MLP whose hidden channels are gated by as many others.

    Source: Shazeer, 2020 (2002.05202); parameter names and rounding of the
    official DINOv2.

    Args:
        embed_dims (int): Channels ``C``.
        feedforward_channels (int): Hidden channels of an MLP of about as many
            FLOPs. Here they are two thirds of that, rounded up to eights.
    """

    num_inputs = 2

    def __init__(self, embed_dims: int, feedforward_channels: int) -> None:
        two_thirds = int(feedforward_channels * 2 / 3)
        super().__init__(embed_dims, (two_thirds + 7) // 8 * 8)

    def _add_layers(self) -> None:
        self.w12 = nn.Linear(self.embed_dims, 2 * self.hidden_dims)
        self.w3 = nn.Linear(self.hidden_dims, self.embed_dims)

    def _rows(self, x: Tensor) -> Tensor:
        gate, hidden = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * hidden)


class DepthwiseConv(nn.Module):
    """3 x 3 depthwise convolution of maps ``(B, H, W, C)``.

    Source, and names of its parameters: PVTv2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels
        ).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, padded: bool = True) -> Tensor:
        """See :meth:`MapLayer.on_map`."""
        conv = self.dwconv
        # (B, H, W, C) -> (B, C, H, W): channels last, without a copy
        x = F.conv2d(
            x.permute(0, 3, 1, 2),
            conv.weight,
            conv.bias,
            padding=(int(padded), 1),
            groups=conv.groups,
        )
        return x.permute(0, 2, 3, 1)


class ConvMLP(MLP, MapLayer):
    """Linear, 3 x 3 depthwise convolution, GELU, linear: PVTv2's, and MiT's.

    Args:
        embed_dims (int): Channels ``C``.
        hidden_dims (int): Channels in between.
        relu (bool): ReLU before the convolution, as in PVTv2 with linear
            attention. Defaults to False.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, relu: bool = False
    ) -> None:
        super().__init__(embed_dims, hidden_dims)
        self.relu = relu

    def _add_layers(self) -> None:
        super()._add_layers()
        self.dwconv = DepthwiseConv(self.hidden_dims)

    def forward(self, x: Tensor, on_map: OnMap) -> Tensor:
        """Map ``(L, C)`` to ``(L, C)``."""
        return on_map(self, x)

    def before(self, rows: Tensor) -> Tensor:
        """See :class:`MapLayer`."""
        hidden = self.fc1(rows)
        return F.relu(hidden) if self.relu else hidden

    def on_map(self, maps: Tensor, padded: bool = True) -> Tensor:
        """See :class:`MapLayer`."""
        return self.dwconv(maps, padded)

    def after(self, hidden: Tensor) -> Tensor:
        """See :class:`MapLayer`."""
        return self.fc2(F.gelu(hidden))

    def flops(self, size: Size) -> LinearCost:
        """Multiply-adds; every token is paid for its convolution."""
        conv = 9 * self.hidden_dims * math.prod(size)
        return LinearCost(conv, 0) + super().flops(size)


FFNS = dict(origin=MLP, swiglu_fused=SwiGLU, conv=ConvMLP)


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al., ICCV 2021).

    Args:
        embed_dims (int): Channels ``C``.
        init_value (float): Of all factors.
    """

    def __init__(self, embed_dims: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dims,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(..., C)``; elementwise, so no multiply-adds count."""
        return x * self.gamma


class Context(NamedTuple):
    """What :meth:`TransformerBlock.prepare` made of all tokens.

    Attributes:
        keys (Tensor): Packed over the batch, ``(sum_b T_b, h, d)``.
        values (Tensor): Like the keys.
        key_lengths (list[int]): Keys of each image, ``T_b``.
        kept (tuple): See :class:`Block`; of the attention, and the MLP.
        normed (Tensor): The tokens, normed, in their shape.
    """

    keys: Tensor
    values: Tensor
    key_lengths: list[int]
    kept: tuple[Tensor | None, Tensor | None]
    normed: Tensor


class TransformerBlock(Block):
    """Pre-norm encoder block of PVT, DeiT, ViT, DINOv2 and LV-ViT.

    Args:
        embed_dims (int): Channels ``C``.
        num_heads (int): Heads of the attention.
        feedforward_channels (int): Hidden channels of the MLP.
        sr_ratio (int): See :class:`SpatialReductionAttention`. Defaults to 1.
        drop_path (float): Probability to drop a sample's residual branch.
            Defaults to 0.
        name (str): For reports. Defaults to ``''``.
        layer_scale_init_value (float): Of :class:`LayerScale` on attention
            and MLP. Defaults to 0: none.
        ffn_type (str): ``'origin'``: :class:`MLP`; ``'swiglu_fused'``:
            :class:`SwiGLU`; ``'conv'``: :class:`ConvMLP`. Defaults to
            ``'origin'``.
        eps (float): Of the norms of rows. Defaults to 1e-6.
        qkv_bias (bool): See :class:`SpatialReductionAttention`. Defaults to
            True.
        skip_lam (float): What attention and MLP add is divided by it, as in
            LV-ViT. Defaults to 1.
        linear (bool): :class:`PooledAttention`, and its MLP, which is
            ``'conv'``. Defaults to False.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        sr_ratio: int = 1,
        drop_path: float = 0.0,
        name: str = '',
        layer_scale_init_value: float = 0.0,
        ffn_type: str = 'origin',
        eps: float = 1e-6,
        qkv_bias: bool = True,
        skip_lam: float = 1.0,
        linear: bool = False,
    ) -> None:
        super().__init__(embed_dims, drop_path, name)
        self.skip_lam = skip_lam
        self.norm1 = nn.LayerNorm(embed_dims, eps=eps)
        self.attn = (
            PooledAttention(embed_dims, num_heads)
            if linear
            else SpatialReductionAttention(
                embed_dims, num_heads, sr_ratio, qkv_bias
            )
        )
        self.norm2 = nn.LayerNorm(embed_dims, eps=eps)
        ffn = FFNS[ffn_type]
        if linear:
            ffn = partial(ffn, relu=True)
        self.mlp = ffn(embed_dims, feedforward_channels)
        self.ls1, self.ls2 = nn.Identity(), nn.Identity()
        if layer_scale_init_value:
            self.ls1 = LayerScale(embed_dims, layer_scale_init_value)
            self.ls2 = LayerScale(embed_dims, layer_scale_init_value)

    def prepare(
        self, x: Tensor, size: Size, lengths: list[int] | None = None
    ) -> Prepared:
        """Compute keys and values from every token.

        Args:
            x (Tensor): Tokens ``(B, E + H * W, C)``, extra tokens first; or,
                if ``sr_ratio`` is 1, packed rows ``(sum_b T_b, C)``.
            size (tuple[int, int]): ``(H, W)``.
            lengths (list[int], optional): Of packed rows, ``T_b``.

        Returns:
            Prepared: Base and source are ``x`` itself.
        """
        normed = self.norm1(x)
        keys, values = self.attn(normed, None if lengths else size)
        num_images = len(lengths or x)
        lengths = lengths or [keys.shape[0] // num_images] * num_images
        draw = self.drop_path.draw
        kept = draw(num_images, x), draw(num_images, x)
        context = Context(keys, values, lengths, kept, normed)
        return Prepared(x, x, context)

    def update(
        self,
        rows: Tensor,
        lengths: list[int],
        context: Context,
        on_map: OnMap | None = None,
        attend: Callable = packed_attention,
        normed: Tensor | None = None,
    ) -> Tensor:
        """See :class:`Block`; attention and MLP of rows.

        Args:
            rows (Tensor): ``(sum_b L_b, C)``.
            lengths (list[int]): Rows of each image, ``L_b``.
            context (Context): Of their images.
            on_map (OnMap, optional): For :class:`ConvMLP`.
            attend (Callable): Attention of queries ``(sum_b L_b, h, d)`` to
                keys and values, arguments as of :func:`packed_attention`,
                which is the default.
            normed (Tensor, optional): The rows, if they are normed already.

        Returns:
            Tensor: Of the rows' shape.
        """
        normed = self.norm1(rows) if normed is None else normed
        attended = self.attn(
            normed, context=context, lengths=lengths, attend=attend
        )
        attended = self._weigh(self.ls1(attended))
        attended = self.drop_path(attended, context.kept[0], lengths)
        sums = rows + attended
        hidden = self._weigh(self.ls2(self.mlp(self.norm2(sums), on_map)))
        hidden = self.drop_path(hidden, context.kept[1], lengths)
        return add(attended, hidden, out=sums)

    def _weigh(self, x: Tensor) -> Tensor:
        return x if self.skip_lam == 1 else x / self.skip_lam

    def update_prepared(
        self, prepared: Prepared, size: Size, attend: Callable | None = None
    ) -> Tensor:
        """See :class:`Block`; nothing is normed twice.

        ``attend`` as of :meth:`update`.
        """
        base, source, context = prepared
        return self.update(
            source.flatten(0, 1),  # (B, E + N, C) -> (B * (E + N), C)
            [source.shape[1]] * len(source),
            context,
            partial(on_full_map, size=size),
            normed=context.normed.flatten(0, 1),
            **({} if attend is None else dict(attend=attend)),
        ).view_as(base)

    def flops(self, size: Size, num_extra: int) -> LinearCost:
        """See :class:`Block`."""
        return self.attn.flops(size, num_extra) + self.mlp.flops(size)
