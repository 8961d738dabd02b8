"""What every backbone promises, whatever its architecture and method.

A new family is an entry of ``FAMILIES``.
"""

import copy
import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmdge.engine.hooks import CostHook
from mmdge.models.layers import transformer
from mmdge.models.weights import from_ours
from mmdge.utils import UserError
from mmdge.utils.counting import flop_counter
from tests.small import (
    DINO,
    cf_lvvit,
    cf_vit,
    convnext,
    deit,
    dinov2,
    dpvt,
    dynamic_convnext,
    dynamic_lvvit,
    dynamic_swin,
    dynamic_vit,
    merging_vit,
    mixed_patch_vit,
    pictures,
    pvt,
    pvt_v2,
    swin,
    token_routing,
)


class Family(NamedTuple):
    """Backbones of one registered name.

    Attributes:
        build: A small one, out of its arguments, whose blocks matter and
            whose decisions differ from cell to cell; in training.
        host: The host's own static backbone, in evaluation, with the weights
            of ours, whose routers are none; None if the host has no such.
        kinds: Every way to decide, as arguments; the first is the default.
        variants: Other outputs, tokens and positions, as arguments.
        dense: The dense twin, as arguments.
        tokens: How many of a side in pixels, at a stride.
        stages: How many ``frozen_stages`` there are.
        noisy: Kinds that decide otherwise in training.
        random: Kinds that draw anew for each batch.
        wasteful: Kinds that compute more than is counted.
        compiled: Kinds to compile, which takes seconds.
        adapters: Linear layers that users give adapters.
    """

    build: Callable
    host: Callable
    kinds: Mapping[str, dict]
    variants: Mapping[str, dict]
    dense: dict
    tokens: Callable[[int, int], int]
    stages: int
    noisy: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    wasteful: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ('attn.q', 'attn.kv', 'mlp.fc1', 'mlp.fc2')


def mmdets(model):
    from mmdet.models.backbones import PyramidVisionTransformer

    if hasattr(model, 'cls_token'):
        return None
    host = PyramidVisionTransformer(
        pretrain_img_size=tuple(4 * side for side in model.pos_sizes[0]),
        embed_dims=8,  # of a head
        num_layers=model.arch['num_layers'],
        num_heads=model.arch['num_heads'],
        out_indices=model.out_indices,
        norm_cfg=dict(type='LN', eps=1e-6),
    )
    return give_weights(with_official_eps(host), model, 'mmdet')


def with_official_eps(host):
    """The hosts give all norms one; the official code, and ours, 1e-5 here."""
    for name, module in host.named_modules():
        if re.fullmatch(r'layers\.\d\.(0|1\.\d+\.attn)\.norm', name):
            module.eps = 1e-5
    return host


def mmdets_v2(model):
    from mmdet.models.backbones import PyramidVisionTransformerV2

    if model.arch['linear']:
        return None
    host = PyramidVisionTransformerV2(
        embed_dims=8,  # of a head
        num_layers=model.arch['num_layers'],
        num_heads=model.arch['num_heads'],
        mlp_ratios=model.arch['mlp_ratios'],
        out_indices=model.out_indices,
        norm_cfg=dict(type='LN', eps=1e-6),
    )
    return give_weights(with_official_eps(host), model, 'mmdet')


def mmdets_swin(model):
    from mmdet.models.backbones import SwinTransformer

    arch = dict(model.arch, window_size=model.window_size)
    host = SwinTransformer(**arch, out_indices=model.out_indices)
    return give_weights(host, model, 'openmmlab')


def mmpretrains(model):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    if model.apply_layernorm or getattr(model, 'num_classes', None):
        return None
    kind = f'{"Distilled" * model.distilled}VisionTransformer'
    host = getattr(backbones, kind)(
        model.arch,
        img_size=tuple(model.patch_size * side for side in model.pos_size),
        patch_size=model.patch_size,
        out_type=model.out_type,
        out_indices=list(model.out_indices),
        layer_scale_init_value=model.arch['layer_scale_init_value'],
        layer_cfgs=dict(ffn_type=model.arch['ffn_type']),
    )
    give_weights(host, model, 'mmpretrain')
    if hasattr(model, 'register_tokens'):
        add_registers(host, model.register_tokens)
    return host


def mmpretrains_convnext(model):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    host = backbones.ConvNeXt(
        model.arch,
        layer_scale_init_value=float(model.stages[0][0].gamma is not None),
        out_indices=list(model.out_indices),
        gap_before_final_norm=model.gap_before_final_norm,
    )
    return give_weights(host, model, 'mmpretrain')


def add_registers(host, registers):
    """mmpretrain's has none; they go behind the cls token."""

    def put_in(layer, args):
        (x,) = args
        extra = registers.expand(len(x), -1, -1)
        return torch.cat([x[:, :1], extra, x[:, 1:]], 1)

    def without(x, size):
        return plain(
            x[:, [0, *range(1 + registers.shape[1], x.shape[1])]], size
        )

    plain, host._format_output = host._format_output, without
    host.layers[0].register_forward_pre_hook(put_in)


def give_weights(host, model, names):
    (layout,) = (found for found in model.layouts if found.name == names)
    theirs, dropped = from_ours(model.state_dict(), layout)
    assert set(dropped) <= {'register_tokens'}
    # Later blocks, of which no output is returned, are built there.
    assert not host.load_state_dict(theirs, strict=False).unexpected_keys
    host.eval()  # returns None in mmpretrain
    return host


GRANULARITY = dict(
    kinds={
        'learned': dict(routing='learned'),
        'quiet': dict(routing=dict(type='GumbelRouter', noise=False)),
        'sparse': dict(
            routing=dict(type='GumbelRouter', noise=False),
            sparse_training=True,
        ),
        'variance': dict(routing='variance'),
        'ranked': dict(routing=dict(type='QuantileRouter', score='learned')),
        'error': dict(routing='error'),
        'oracle': dict(routing='oracle'),
        'shuffled': dict(routing='shuffled'),
        'random': dict(routing='random'),
        'uniform': dict(routing='uniform'),
        'finest': dict(routing='finest'),
    },
    dense=dict(routing='finest'),
    noisy=('learned',),
    random=('shuffled', 'random'),
    wasteful=('oracle',),
    compiled=('quiet', 'variance'),
)
VIT = {
    'map': {},
    'some': dict(out_indices=(0, 1)),
    'rectangle': dict(pretrain_img_size=(64, 96)),
    'cls': dict(out_type='cls_token', out_indices=(0, 2)),
    'distilled': dict(distilled=True, out_indices=(1, 2)),
    'pair': dict(distilled=True, out_type='cls_token'),
}
PLAIN = dict(
    host=mmpretrains,
    dense=dict(routing='finest'),
    tokens=lambda side, stride: -(-side // stride),
    stages=3,
)
FAMILIES = {
    'DGEPVT': Family(
        build=pvt,
        host=mmdets,
        variants={
            'maps': {},
            'some': dict(out_indices=(0, 2)),
            'rectangle': dict(pretrain_img_size=(64, 96)),
            'cls maps': dict(with_cls_token=True),
            'cls': dict(with_cls_token=True, out_type='cls_token'),
        },
        tokens=lambda side, stride: max(1, side // stride),
        stages=4,
        **GRANULARITY,
    ),
    'DGESwin': Family(
        build=swin,
        host=mmdets_swin,
        kinds={'quiet': {}, 'error': dict(routing='error')},
        variants={
            'maps': {},
            'one window': dict(window_size=9, out_indices=(0, 2)),
            'queries': dict(coarse_queries=True, window_size=7),
        },
        dense=dict(routing='finest'),
        tokens=lambda side, stride: -(-side // stride),
        stages=4,
    ),
    'DGEPVTv2': Family(
        build=pvt_v2,
        host=mmdets_v2,
        variants={
            'maps': {},
            'some': dict(out_indices=(0, 2)),
            'linear': dict(linear=True),
        },
        tokens=lambda side, stride: -(-side // stride),
        stages=4,
        **GRANULARITY
        | dict(
            kinds={
                kind: GRANULARITY['kinds'][kind]
                for kind in ('learned', 'quiet', 'error')
            },
            random=(),
            wasteful=(),
            compiled=(),
        ),
    ),
    'DGEDPVT': Family(
        build=dpvt,
        host=lambda model: None,  # no host has it
        # The method's other kinds are those of DGEPVT.
        kinds={
            kind: GRANULARITY['kinds'][kind]
            for kind in ('learned', 'quiet', 'error')
        },
        variants={
            'maps': {},
            'mean': dict(out_type='avg_featmap', out_indices=3),
        },
        dense=dict(routing='finest'),
        tokens=lambda side, stride: max(1, side // stride),
        stages=4,
        noisy=('learned',),
        adapters=('attn.v', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    ),
    'DGEDeiT': Family(
        build=deit,
        host=mmpretrains,
        variants=VIT,
        tokens=lambda side, stride: -(-side // stride),
        stages=3,
        # The method's other kinds are those of DGEPVT.
        **GRANULARITY
        | dict(
            kinds={
                kind: GRANULARITY['kinds'][kind]
                for kind in ('learned', 'quiet', 'ranked', 'error', 'uniform')
            },
            random=(),
            wasteful=(),
            compiled=('quiet',),
        ),
    ),
    'DGEViT': Family(
        build=dinov2,
        host=mmpretrains,
        kinds={'learned': {}, 'variance': dict(routing='variance')},
        variants={
            'map': {},
            'norms': dict(apply_layernorm=True, out_indices=(0, 1)),
            'cls': dict(out_type='cls_token', out_indices=(0, 2)),
        },
        dense=dict(routing='finest'),
        tokens=lambda side, stride: -(-side // stride),
        stages=3,
        noisy=('learned',),
        adapters=('attn.q', 'attn.kv', 'mlp.w12', 'mlp.w3'),
    ),
    'DGEConvNeXt': Family(
        build=convnext,
        host=mmpretrains_convnext,
        # The method's other kinds are those of DGEPVT.
        kinds={
            kind: GRANULARITY['kinds'][kind]
            for kind in ('learned', 'quiet', 'error')
        },
        variants={
            'maps': {},
            'some': dict(out_indices=(0, 2), layer_scale_init_value=0),
            'means': dict(gap_before_final_norm=True, out_indices=(1, 3)),
        },
        dense=dict(routing='finest'),
        tokens=lambda side, stride: max(1, side // stride),
        stages=4,
        noisy=('learned',),
        adapters=('pwconv1', 'pwconv2'),
    ),
    'DynamicViT': Family(
        build=dynamic_vit,
        host=mmpretrains,
        kinds={
            'learned': {},
            'price': dict(amount='price', price=0.1),
            'again': dict(reactivate=True),
            'random': dict(routing='random'),
            'uniform': dict(routing='uniform'),
            'once': dict(routing='uniform', pruning_loc=(0,)),
            'finest': dict(routing='finest'),
        },
        variants={**VIT, 'some': dict(out_indices=(0, 1), **DINO)},
        dense=dict(routing='finest'),
        tokens=lambda side, stride: -(-side // stride),
        stages=3,
        noisy=('learned', 'price', 'again'),
        random=('random',),
        compiled=('once',),
    ),
    'DynamicSwin': Family(
        build=dynamic_swin,
        host=mmdets_swin,
        kinds={
            'learned': {},
            'price': dict(amount='price', price=0.1),
            'uniform': dict(routing='uniform'),
        },
        variants={'maps': {}, 'some': dict(out_indices=(0, 2))},
        dense=dict(routing='finest'),
        tokens=lambda side, stride: -(-side // stride),
        stages=4,
        noisy=('learned', 'price'),
    ),
    'DynamicConvNeXt': Family(
        build=dynamic_convnext,
        host=mmpretrains_convnext,
        kinds={'learned': {}, 'uniform': dict(routing='uniform')},
        variants={'maps': {}},
        dense=dict(routing='finest'),
        tokens=lambda side, stride: max(1, side // stride),
        stages=4,
        noisy=('learned',),
        adapters=('pwconv1', 'pwconv2'),
    ),
    'DynamicLVViT': Family(
        build=dynamic_lvvit,
        # What DynamicViT's others promise has nothing to do with LV-ViT.
        kinds={'learned': {}},
        variants={'map': {}, 'cls': dict(out_type='cls_token')},
        noisy=('learned',),
        **PLAIN | dict(host=lambda model: None),  # the golden files are one
    ),
    'CFViT': Family(
        build=cf_vit,
        kinds={
            'attention': {},
            'uniform': dict(routing='uniform', alpha=0.3),
        },
        variants={
            'map': {},
            'some': dict(out_indices=(0, 1), **DINO),
            'logits': dict(num_classes=5),
        },
        **PLAIN,
    ),
    'CFViT with exits': Family(
        build=partial(cf_vit, num_classes=5),
        kinds={'exits': dict(price=0.5)},
        variants={'logits': {}},
        noisy=('exits',),  # in training all go on
        **PLAIN | dict(host=lambda model: None),
    ),
    'CFLVViT': Family(
        build=cf_lvvit,
        kinds={'attention': {}},
        variants={'map': {}, 'logits': dict(num_classes=5)},
        **PLAIN | dict(host=lambda model: None),
    ),
    'TokenRoutingPVT': Family(
        build=token_routing,
        host=mmdets_v2,
        kinds={
            'learned': {},
            'quiet': dict(routing=dict(type='AveragedGate', noise=False)),
        },
        variants={'maps': {}, 'some': dict(out_indices=(0, 2))},
        dense=dict(routing='finest'),
        tokens=lambda side, stride: -(-side // stride),
        stages=4,
        noisy=('learned',),
    ),
    'MixedPatchViT': Family(
        build=mixed_patch_vit,
        kinds={
            'effect': {},
            'random': dict(routing='random'),
            'finest': dict(routing='finest'),
        },
        variants={
            'map': {},
            'some': dict(out_indices=(0, 1), **DINO),
            'cls': dict(out_type='cls_token', out_indices=(0, 2)),
        },
        random=('random',),
        compiled=('effect',),
        **PLAIN,
    ),
    'MergingViT': Family(
        build=merging_vit,
        kinds={
            'effect': {},
            'uniform': dict(routing='uniform', merging_loc=0),
        },
        variants={'map': {}, 'some': dict(out_indices=(0, 1), **DINO)},
        **PLAIN,
    ),
}


def every(*groups, but=(), only=None):
    """Parametrise over families, and maybe kinds and variants of each."""
    params = []
    for name, family in FAMILIES.items():
        left_out = [key for group in but for key in getattr(family, group)]
        for keys in product(*(getattr(family, only or g) for g in groups)):
            if set(keys) & set(left_out):
                continue
            choices = zip(groups, keys, strict=True)
            args = [getattr(family, group)[key] for group, key in choices]
            label = ' '.join([name, *keys])
            params.append(pytest.param(family, *args, id=label))
    names = ['family', *(group.removesuffix('s') for group in groups)]
    return pytest.mark.parametrize(names, params)


HALF = [torch.bfloat16, torch.float16]
modes = pytest.mark.parametrize('training', [False, True])


def run(model, x):
    """All outputs in one list; what is random is the same each time."""
    torch.manual_seed(1)
    outs = model(x)
    pairs = [out if isinstance(out, tuple) else (out,) for out in outs]
    return [part for pair in pairs for part in pair]


def assert_alike(ours, theirs, tolerance=1e-5):
    """In units of the largest entry, if that is above 1."""
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, b.detach().abs().max().item())
        torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0)


def count(model, x):
    """What PyTorch's counter sees, in multiply-adds."""
    with torch.no_grad(), flop_counter() as counter:
        run(model, x)
    return counter.get_total_flops() / 2


def backward(model, x):
    """Outputs, and gradients by name."""
    model.zero_grad()
    outs = run(model, x)
    torch.manual_seed(2)
    sum((out * torch.randn_like(out)).mean() for out in outs).backward()
    return outs, {name: p.grad for name, p in model.named_parameters()}


class TestAnyInput:
    @every()
    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_size(self, family, data):
        kind = data.draw(st.sampled_from(sorted(family.kinds)))
        variant = data.draw(st.sampled_from(sorted(family.variants)))
        model = family.build(**family.kinds[kind], **family.variants[variant])
        shape = [data.draw(st.integers(1, most)) for most in (5, 150, 150)]
        x = pictures(*shape)
        training = data.draw(st.booleans())
        outs = run(model.train(training), x)
        assert all(out.isfinite().all() for out in outs)
        if outs[0].dim() == 4:
            sizes = [
                tuple(family.tokens(side, stride) for side in shape[1:])
                for stride in model.strides
            ]
            found = [tuple(out.shape[2:]) for out in outs]
            last = len(sizes) - 1
            assert found == [sizes[min(i, last)] for i in model.out_indices]
        assert all(len(out) == shape[0] for out in outs)
        assert model.cost.dense.gt(0).all()
        assert model.cost.dynamic.gt(0).all()
        if not training and kind not in family.wasteful:
            assert count(model, x) == model.cost.dynamic.sum()

    @every('kinds')
    @pytest.mark.parametrize(
        'shape', [(1, 1333, 4), (1, 4, 1333), (7, 37, 301), (1, 200, 333)]
    )
    def test_extremes(self, family, kind, shape):
        model = family.build(**kind)
        for training in (True, False):
            outs = run(model.train(training), pictures(*shape))
            assert all(out.isfinite().all() for out in outs)

    @every()
    def test_uninitialised_memory_never_shows(self, family):
        """The same input gives the same output, border and all."""
        model, x = family.build().eval(), pictures(2, 70, 90)
        first = run(model, x)
        del model.cost
        _ = [torch.full((2, 40, 4, 5), torch.nan) for _ in range(50)]
        for a, b in zip(first, run(model, x), strict=True):
            assert a.equal(b)

    @every('kinds')
    @pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
    @modes
    def test_what_is_not_finite_stays_in_its_image(
        self, family, kind, bad, training
    ):
        model = family.build(**kind).train(training)
        x = torch.rand(3, 3, 96, 64)
        broken = x.clone()
        broken[1, :, 10:40, 10:40] = bad
        if training:
            run(model, broken)
        with torch.set_grad_enabled(training):
            outs, cost = run(model, broken), model.cost
            right = run(model, x)
        assert not all(out[1].isfinite().all() for out in outs)
        assert cost.dynamic[[0, 2]].isfinite().all()
        others = [out[[0, 2]] for out in outs]
        assert all(out.isfinite().all() for out in [*others, *right])
        if not training:
            assert_alike(others, [out[[0, 2]] for out in right])

    @every()
    @pytest.mark.parametrize('shape', [(1, 4, 64, 64), (3, 64, 64)])
    def test_wrong_input_is_named(self, family, shape):
        with pytest.raises(ValueError, match=r'shape \(B, 3, H, W\), but got'):
            family.build()(torch.rand(shape))


class TestAgreement:
    @every('kinds', 'variants', but=['random'])
    def test_a_batch_equals_its_images(self, family, kind, variant):
        model, x = family.build(**kind, **variant), pictures(7, 100, 76)
        run(model, x)  # what is to be remembered
        model.eval()
        for batch in (x, x[:2]):
            together, cost = run(model, batch), model.cost
            for i in range(len(batch)):
                alone = run(model, x[i : i + 1])
                assert model.cost.dynamic.equal(cost.dynamic[i : i + 1])
                assert_alike(alone, [out[i : i + 1] for out in together])

    @every('kinds', 'variants', but=['noisy'])
    @pytest.mark.parametrize('size', [(128, 128), (100, 76)])
    def test_training_path_equals_packed_path(
        self, family, kind, variant, size
    ):
        model, x = family.build(**kind, **variant), pictures(3, *size)
        run(model, x)  # what is to be remembered
        packed = copy.deepcopy(model).eval()
        outs, found = backward(model, x)
        packed_outs, expected = backward(packed, x)
        assert_alike(outs, packed_outs)
        assert model.cost.dynamic.equal(packed.cost.dynamic)
        assert model.cost.dense.equal(packed.cost.dense)
        if model.routers:
            assert model.cost.region_spread.max() > 0
        # Decisions that learn have a gradient of their own.
        if not any(True for r in model.routers for _ in r.parameters()):
            assert_alike(found.values(), expected.values())

    @every('variants')
    def test_dense_twin_equals_the_hosts_own(self, family, variant):
        twin = family.build(**family.dense, **variant).eval()
        dynamic = family.build(**variant).eval()
        dynamic.load_state_dict(twin.state_dict())
        host = family.host(twin)
        if host is None:
            pytest.skip('the host has no such backbone')
        for size in [(64, 64), (96, 160), (100, 75), (250, 131)]:
            x = torch.rand(2, 3, *size)
            expected = run(host, x)
            assert_alike(run(twin, x), expected)
            with dynamic.as_dense_twin():
                assert_alike(run(dynamic, x), expected)
            assert dynamic.cost.ratio.eq(1).all() and not dynamic.cost.maps
            assert twin.cost.dynamic.equal(dynamic.cost.dense)

    @every('kinds')
    def test_parts_that_a_cache_holds_change_nothing(
        self, family, kind, monkeypatch
    ):
        model, x = family.build(**kind).eval(), pictures(3, 100, 132)
        whole, cost = run(model, x), model.cost
        monkeypatch.setattr(transformer, 'CACHE_BYTES', 10_000)
        with torch.inference_mode():
            assert_alike(run(model, x), whole)
        assert model.cost.dynamic.equal(cost.dynamic)


class TestFlops:
    SHAPES = [(1, 128, 128), (2, 64, 160), (3, 100, 77), (2, 5, 33)]

    @every('kinds', 'variants', but=['wasteful'])
    def test_formula_equals_counter(self, family, kind, variant):
        model = family.build(**kind, **variant).eval()
        for shape in self.SHAPES:
            assert count(model, pictures(*shape)) == model.cost.dynamic.sum()

    @every('variants')
    def test_dense_formula_equals_counter_of_the_twin(self, family, variant):
        model = family.build(**variant).eval()
        for shape in self.SHAPES:
            x = pictures(*shape)
            run(model, x)
            dense = model.cost.dense
            with model.as_dense_twin():
                assert count(model, x) == dense.sum()
            assert model.cost.dynamic.equal(dense)

    @every()
    def test_stages_and_maps_tell_the_whole(self, family):
        model = family.build()
        run(model, pictures(2, 96, 96))
        for part in ('dynamic', 'dense'):
            stages = [getattr(stage, part) for stage in model.cost.stages]
            assert sum(stages).equal(getattr(model.cost, part))
        assert len(model.cost.maps) == len(model.routers) > 0
        for found in model.cost.maps:
            side = -(-96 // found.cell)
            assert found.share.shape == found.valid.shape == (2, side, side)
            assert found.share.ge(0).all() and found.share.le(1).all()

    @every()
    def test_adapters_run_and_cost_what_the_architecture_does(self, family):
        lora = pytest.importorskip('mmpretrain.models.peft').LoRAModel
        plain, x = family.build().eval(), pictures(2, 64, 64)
        plain.is_init = True
        model = lora(
            dict(type=lambda: copy.deepcopy(plain)),
            alpha=4,
            rank=2,
            targets=[dict(type=name) for name in family.adapters],
        ).eval()
        with torch.no_grad():
            assert_alike(run(model, x), run(plain, x))  # they begin at 0
        assert model.module.cost.dynamic.equal(plain.cost.dynamic)
        assert model.module.cost.dense.equal(plain.cost.dense)
        _, found = backward(model.train(), x)
        assert any(g is not None for n, g in found.items() if 'lora' in n)


class TestTraining:
    @every('kinds', 'variants')
    def test_every_parameter_gets_a_gradient(self, family, kind, variant):
        model = family.build(**kind, **variant)
        for progress in (0.0, 0.0, 0.5, 1.0):
            model.anneal(progress)
            _, found = backward(model, torch.rand(2, 3, 64, 64))
            assert not [name for name, g in found.items() if g is None]

    @every('kinds')
    def test_checkpointing_changes_nothing_but_memory(self, family, kind):
        plain = family.build(**kind, drop_path_rate=0.3)
        saving = family.build(**kind, drop_path_rate=0.3, with_cp=True)
        saving.load_state_dict(plain.state_dict())
        x = pictures(2, 96, 64)
        for a, b in zip(
            backward(plain, x)[1].values(),
            backward(saving, x)[1].values(),
            strict=True,
        ):
            torch.testing.assert_close(b, a)
        for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
            assert a.equal(b)

    @every('kinds', 'variants')
    def test_frozen_stages_stay_but_their_routers_remember(
        self, family, kind, variant
    ):
        free = family.build(**kind, **variant)
        model = family.build(**kind, **variant, frozen_stages=1)
        model.load_state_dict(free.state_dict())
        assert model.eval() is model and model.train() is model
        x = pictures(2, 64, 64)
        backward(free, x)
        for name, gradient in backward(model, x)[1].items():
            trained = model.get_parameter(name).requires_grad
            assert (gradient is None) != trained, name
        routers = {part for r in model.routers for part in r.modules()}
        for module in model.frozen_modules():
            assert not any(p.requires_grad for p in module.parameters())
            for part in module.modules():
                assert part.training == (part in routers)
        for a, b in zip(free.buffers(), model.buffers(), strict=True):
            assert a.equal(b)

    @every('variants')
    def test_frozen_to_the_end_decisions_and_classifiers_are_trained(
        self, family, variant
    ):
        for kind in family.kinds.values():
            kwargs = dict(**kind, **variant, frozen_stages=family.stages)
            model = family.build(**kwargs)
            decisions = [p for r in model.routers for p in r.parameters()]
            for name, parameter in model.named_parameters():
                free = any(parameter is p for p in decisions)
                free |= name.startswith(('head.', 'aux_head.'))
                assert free or not parameter.requires_grad, name

    @every()
    def test_layers_further_down_learn_slower(self, family):
        """As mmpretrain's fine-tuning has it."""
        optimizers = pytest.importorskip('mmpretrain.engine.optimizers')
        from mmpretrain.models import ImageClassifier

        init_default_scope('mmpretrain')
        head = dict(type='LinearClsHead', num_classes=2, in_channels=8)
        optimizer = dict(type='SGD', lr=1.0, weight_decay=0.0)
        model = ImageClassifier(family.build(), head=head)
        constructor = optimizers.LearningRateDecayOptimWrapperConstructor(
            dict(type='OptimWrapper', optimizer=optimizer),
            dict(layer_decay_rate=0.5),
        )
        groups = constructor(model).optimizer.param_groups
        rates = {id(p): g['lr'] for g in groups for p in g['params']}
        assert len(rates) == len(list(model.parameters()))
        order = [min(rates.values())]  # of the first embeddings
        for stage in model.backbone.stages:
            for block in stage:
                # Blocks may share a layer: each architecture says which.
                (rate,) = {rates[id(p)] for p in block.parameters()}
                order.append(rate)
        assert order == sorted(order) and order[0] < order[1]
        assert rate == 1 / 2 and max(rates.values()) == 1  # of the head
        for name, parameter in model.backbone.named_parameters():
            assert 'score_predictor' not in name or rates[id(parameter)] == 1


class TestMemory:
    @every('kinds')
    def test_no_graph_is_kept(self, family, kind):
        model, x = family.build(**kind), pictures(2, 64, 64)
        backward(model, x)
        learns = any(True for r in model.routers for _ in r.parameters())
        assert model.cost.dynamic.requires_grad == learns
        if learns:
            run(model, x)
            model.cost.dynamic.sum().backward()
            found = [p.grad for r in model.routers for p in r.parameters()]
            assert any(grad.abs().max() > 0 for grad in found)
        model.cost = model.cost.detach()
        kept = [model.cost, *model.cost.stages, *model.cost.maps]
        kept += [*model.modules()]
        assert not any(
            isinstance(value, torch.Tensor) and value.grad_fn is not None
            for part in kept
            for value in [*vars(part).values(), *buffers(part)]
        )
        with torch.no_grad():
            run(model.eval(), x)
        assert not model.cost.dynamic.requires_grad

    @every('kinds', 'variants')
    def test_copies_pickles_and_state_dicts(self, family, kind, variant):
        model, x = family.build(**kind, **variant), pictures(2, 64, 64)
        run(model, x)  # what is to be remembered
        loaded = family.build(**kind, **variant)
        loaded.load_state_dict(model.state_dict())
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert all(other.cost is None for other in others)
        expected = run(model.eval(), x)
        for other in [*others, loaded]:
            assert_alike(run(other.eval(), x), expected)
            assert other.cost.dynamic.equal(model.cost.dynamic)


def buffers(part):
    return part.buffers(recurse=False) if isinstance(part, nn.Module) else []


class TestPrecision:
    @every('kinds')
    @pytest.mark.parametrize('dtype', HALF, ids=str)
    def test_autocast(self, family, kind, dtype):
        model, x = family.build(**kind), pictures(2, 100, 130)
        for training in (True, False):
            with torch.autocast('cpu', dtype):
                outs = run(model.train(training), x)
            assert all(out.isfinite().all() for out in outs)
            assert model.cost.dynamic.dtype == torch.float64
            if training:
                sum(out.float().square().mean() for out in outs).backward()
                assert all(p.grad is not None for p in model.parameters())

    @every('kinds')
    @pytest.mark.parametrize('dtype', [*HALF, torch.float64], ids=str)
    def test_all_of_it(self, family, kind, dtype):
        """But routers, which decide as in float32."""
        model, x = family.build(**kind), pictures(4, 128, 160)
        run(model, x)  # what is to be remembered
        run(model.eval(), x)
        ratio = model.cost.ratio.mean().item()
        routers = copy.deepcopy(model.routers)
        model.to(dtype)
        for router, before in zip(model.routers, routers, strict=True):
            for name, value in before.state_dict().items():
                kept = router.state_dict()[name]
                assert kept.dtype != dtype or dtype == torch.float64
                assert kept.equal(value.to(kept.dtype))
        outs = run(model, x.to(dtype))
        assert all(out.dtype == dtype for out in outs)
        assert model.cost.ratio.mean().item() == pytest.approx(ratio, abs=0.02)
        for _ in range(2):
            outs = run(model.train(), x.to(dtype))
            assert all(out.dtype == dtype for out in outs)
            assert all(out.isfinite().all() for out in outs)

    @pytest.mark.gpu
    @pytest.mark.skipif(
        not torch.cuda.is_available(), reason='needs a CUDA device'
    )
    @every('kinds', but=['random', 'noisy'])
    @modes
    def test_gpu_equals_cpu(self, family, kind, training):
        model, x = family.build(**kind), pictures(3, 100, 132)
        run(model, x)  # what is to be remembered
        other = copy.deepcopy(model).cuda().train(training)
        outs = run(model.train(training), x)
        assert_alike([o.cpu() for o in run(other, x.cuda())], outs, 1e-4)
        assert other.cost.dynamic.cpu().equal(model.cost.dynamic)

    @pytest.mark.gpu
    @pytest.mark.skipif(
        not torch.cuda.is_available(), reason='needs a CUDA device'
    )
    @every()
    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize('batch_size', [1, 3])
    def test_a_gpu_is_waited_for_once_per_block(
        self, family, dtype, batch_size
    ):
        model = family.build().eval().to('cuda', dtype)
        x = pictures(batch_size, 100, 132).to('cuda', dtype)
        with torch.inference_mode():
            model(x)  # makes the tables of this size
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter('always')
                torch.cuda.set_sync_debug_mode('warn')
                try:
                    model(x)
                finally:
                    torch.cuda.set_sync_debug_mode('default')
        assert len(waits) <= len(model.cost.maps), [str(w) for w in waits]


class TestCompilers:
    @every('kinds', only='compiled')
    def test_a_compiled_step_is_the_step(self, family, kind):
        torch.compiler.reset()
        model = family.build(**kind, out_indices=0)
        other, x = copy.deepcopy(model), pictures(2, 64, 64)
        outs, gradients = backward(torch.compile(other, backend='eager'), x)
        expected, others = backward(model, x)
        assert_alike(outs, expected)
        assert_alike(gradients.values(), others.values())
        assert other.cost.dynamic.equal(model.cost.dynamic)

    @every()
    def test_a_traced_one_is_refused_but_its_dense_twin_not(self, family):
        routed, twin = family.build().eval(), family.build(**family.dense)
        x, other = torch.rand(2, 1, 3, 64, 64)
        said = 'cannot be traced.*torch.export can.*dense twin'
        with pytest.raises(UserError, match=said):
            torch.jit.trace(routed, (x,))
        for model in (twin.eval(), routed):
            with model.as_dense_twin(), torch.no_grad():
                expected = run(model, other)
                for made in (
                    torch.jit.trace(model, (x,)),
                    torch.export.export(model, (x,)).module(),
                ):
                    assert_alike(run(made, other), expected)


class TestHosts:
    """Every family in detection and segmentation, with the hosts' own."""

    def build(self, family, scope, **config):
        init_default_scope(scope)
        backbone, images = family.build(), pictures(2, 64, 96)
        outs = run(backbone, images)
        if outs[0].dim() < 4:
            pytest.skip('it is for classification, where images may leave')
        channels = [out.shape[1] for out in outs]
        strides = (backbone.strides * len(channels))[: len(channels)]
        neck = dict(
            type='FPN',
            in_channels=channels,
            out_channels=8,
            num_outs=len(channels),
        )
        config |= dict(neck=neck, **HEADS[scope](channels, strides))
        config['backbone'] = dict(type=lambda: backbone)
        model = MODELS.build(ConfigDict(config))
        hook = CostHook(budget=0.5)
        hook.attach(model)
        return model, images

    @every()
    def test_detects(self, family):
        structures = pytest.importorskip('mmdet.structures')
        model, images = self.build(family, 'mmdet', type='RetinaNet')
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
        samples = [structures.DetDataSample() for _ in images]
        for sample in samples:
            sizes = dict.fromkeys(SIZES, (64, 96))
            sample.set_metainfo(dict(sizes, scale_factor=(1.0, 1.0)))
            sample.gt_instances = InstanceData(
                bboxes=boxes, labels=torch.tensor([0])
            )
        self.check(model, images, samples)

    @every()
    def test_segments(self, family):
        structures = pytest.importorskip('mmseg.structures')
        model, images = self.build(
            family, 'mmseg', type='EncoderDecoder', test_cfg=dict(mode='whole')
        )
        samples = [structures.SegDataSample() for _ in images]
        for sample in samples:
            sample.set_metainfo(dict.fromkeys(SIZES, (64, 96)))
            sample.gt_sem_seg = PixelData(data=torch.ones(1, 64, 96).long())
        self.check(model, images, samples)

    def check(self, model, images, samples):
        losses = model.train()(images, samples, mode='loss')
        assert {'loss_budget', 'flops_ratio'} < losses.keys()
        loss, _ = model.parse_losses(losses)
        loss.backward()
        backbone = model.backbone
        assert all(p.grad is not None for p in backbone.parameters())
        with torch.no_grad():
            found = model.eval()(images, samples, mode='predict')
        spent = [sample.backbone_cost['dynamic'] for sample in found]
        assert spent == backbone.cost.dynamic.tolist()


def _retina_head(channels, strides):
    return dict(
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                scales=[4],
                strides=strides,
            ),
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.4,
                min_pos_iou=0,
            ),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=10,
            score_thr=0.0,
            max_per_img=5,
            nms=dict(type='nms', iou_threshold=0.5),
        ),
    )


def _fpn_head(channels, strides):
    return dict(
        decode_head=dict(
            type='FPNHead',
            in_channels=[8] * len(channels),
            in_index=[*range(len(channels))],
            feature_strides=strides,
            channels=8,
            num_classes=2,
            norm_cfg=dict(type='BN'),
        )
    )


HEADS = dict(mmdet=_retina_head, mmseg=_fpn_head)
SIZES = 'img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'
