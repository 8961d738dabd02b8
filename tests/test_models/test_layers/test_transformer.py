"""The block and its layers, on packed rows."""

import pytest
import torch
import torch.nn.functional as F

from mmdge.models.layers import add, packed_attention, transformer
from mmdge.models.layers.transformer import (
    MLP,
    SpatialReductionAttention,
    TransformerBlock,
    num_parts,
)
from tests.small import pictures, pvt


@pytest.mark.parametrize('sr_ratio', [1, 2, 4])
@pytest.mark.parametrize('num_extra', [0, 1])
@pytest.mark.parametrize('lengths', [[5, 5], [1, 9], [30, 2], [0, 7]])
def test_rows_of_a_batch_are_updated_as_each_images_own(
    sr_ratio, num_extra, lengths
):
    block = TransformerBlock(12, 3, 24, sr_ratio)
    x, rows = torch.randn(2, num_extra + 35, 12), torch.randn(sum(lengths), 12)
    base, source, context = block.prepare(x, (5, 7))
    assert base is source is x
    packed = block.update(rows, lengths, context).split(lengths)
    for i, part in enumerate(rows.split(lengths)):
        context = block.prepare(x[i : i + 1], (5, 7)).context
        alone = block.update(part, [len(part)], context)
        torch.testing.assert_close(packed[i], alone)


@pytest.mark.parametrize('num_extra', [0, 1])
def test_packed_rows_are_prepared_as_a_map(num_extra):
    block, x = TransformerBlock(12, 3, 24), torch.randn(2, num_extra + 35, 12)
    context = block.prepare(x, (5, 7)).context
    lengths = [x.shape[1]] * 2
    packed = block.prepare(x.flatten(0, 1), (5, 7), lengths).context
    for name in ('keys', 'values'):
        torch.testing.assert_close(
            getattr(packed, name), getattr(context, name)
        )
    assert packed.key_lengths == context.key_lengths == lengths
    update = block.update(x.flatten(0, 1), lengths, packed).view_as(x)
    torch.testing.assert_close(block(x, (5, 7)), x + update)


def one_by_one(q, k, v, ends_q, ends_k, max_q, max_k):
    """The contract of PyTorch's `varlen_attn`, in a loop."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    outs = []
    for i in range(len(ends_q) - 1):
        rows = slice(ends_q[i], ends_q[i + 1])
        keys = slice(ends_k[i], ends_k[i + 1])
        assert len(q[rows]) <= max_q and len(k[keys]) <= max_k
        parts = (x.transpose(0, 1) for x in (q[rows], k[keys], v[keys]))
        outs.append(F.scaled_dot_product_attention(*parts).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize('rows', [[4, 4, 4], [1, 8, 3], [0, 9, 3]])
@pytest.mark.parametrize('keys', [[5, 5, 5], [5, 4, 6]])
def test_what_the_kernel_for_unequal_lengths_is_told(rows, keys, monkeypatch):
    q, k, v = (torch.randn(n, 2, 8) for n in (12, 15, 15))
    lengths = rows, keys
    plain = packed_attention(q, k, v, *lengths)
    monkeypatch.setattr(transformer, 'can_use_varlen', lambda _: True)
    monkeypatch.setattr(transformer, 'varlen_attn', one_by_one)
    kernel = packed_attention(q, k, v, *lengths)
    torch.testing.assert_close(kernel, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_kernel_for_unequal_lengths_equals_one_by_one(dtype, monkeypatch):
    kwargs = dict(dtype=dtype, device='cuda')
    q, k, v = (
        torch.randn(n, 2, 32, **kwargs, requires_grad=True)
        for n in (300, 150, 150)
    )
    if not transformer.can_use_varlen(q):
        pytest.skip('this PyTorch, or this GPU, has no such kernel')
    results = []
    for usable in (True, False):
        monkeypatch.setattr(
            transformer, 'can_use_varlen', lambda _, u=usable: u
        )
        out = packed_attention(q, k, v, [1, 200, 99], [50, 60, 40])
        results.append(
            [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
        )
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_cpu_needs_no_kernel_for_unequal_lengths(dtype):
    assert not transformer.can_use_varlen(torch.zeros(3, 2, 32, dtype=dtype))


def test_mlp_in_parts_is_the_mlp(monkeypatch):
    layer = MLP(4, 8)
    x = torch.randn(101, 4)
    whole = layer(x)
    assert num_parts(x, 8) == 1  # a gradient is wanted
    monkeypatch.setattr(transformer, 'CACHE_BYTES', 500)
    with torch.no_grad():
        assert num_parts(x, 8) == 7  # of 3232 bytes
        assert num_parts(x[:0], 8) == num_parts(x[:15], 8) == 1
        torch.testing.assert_close(layer(x), whole)
        assert layer(x[:0]).shape == (0, 4)


def test_add_saves_memory_only_without_gradients_and_mixed_types():
    x, update, out = torch.randn(3, 2, 3).unbind()
    expected, kept = x + update, out.clone()
    torch.testing.assert_close(add(x, update, out), expected)
    torch.testing.assert_close(out, kept)  # a gradient may need it
    with torch.no_grad():
        assert add(x, update.bfloat16(), out).dtype == torch.float32
        torch.testing.assert_close(out, kept)
        assert add(x, update, out) is out
        torch.testing.assert_close(out, expected)


def test_modules_outputs_stay_as_a_hook_saw_them():
    seen = []

    def keep(module, args, out):
        if isinstance(out, torch.Tensor):
            seen.append((out, out.clone()))

    for routing in ('variance', 'finest'):
        model = pvt(routing).eval()
        for module in model.modules():
            module.register_forward_hook(keep)
        with torch.no_grad():
            model(pictures(2, 64, 64))
    assert len(seen) > 12
    for out, then in seen:
        torch.testing.assert_close(out, then)


def test_a_block_by_hand():
    """Queries attend to all tokens; the MLP sees what was attended."""
    block, x = TransformerBlock(4, 2, 8), torch.randn(1, 6, 4)
    attn, normed = block.attn, block.norm1(x)
    q, (k, v) = attn.q(normed), attn.kv(normed).chunk(2, -1)
    heads = []
    for h in (slice(0, 2), slice(2, 4)):
        weights = (q[..., h] @ k[..., h].mT / 2**0.5).softmax(-1)
        heads.append(weights @ v[..., h])
    sums = x + attn.proj(torch.cat(heads, -1))
    hidden = F.gelu(block.mlp.fc1(block.norm2(sums)))
    torch.testing.assert_close(block(x, (2, 3)), sums + block.mlp.fc2(hidden))


def test_a_map_smaller_than_the_reduction_has_one_key():
    layer = SpatialReductionAttention(4, 2, sr_ratio=8)
    assert layer.reduced_size((3, 20)) == (1, 2)
    out = layer.reduce(torch.randn(2, 60, 4), (3, 20))
    assert out.shape == (2, 2, 4) and out.isfinite().all()


def test_heads_must_divide():
    with pytest.raises(ValueError, match='embed_dims=10 must be a multiple'):
        SpatialReductionAttention(10, 3)
