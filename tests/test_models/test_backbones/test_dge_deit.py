"""DGE-DeiT: against the official code, its twin, itself, and the counter.

What the routers and blocks do is tested with DGE-PVT and in test_routing;
here is what is DeiT's own: extra tokens, positions, outputs.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from torch import nn

from mmdge.models import DGEDeiT
from mmdge.models.architectures import LAYOUTS
from mmdge.models.weights import from_ours
from mmdge.utils.counting import flop_counter

ARCH = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192)
QUIET = dict(type='GumbelRouter', noise=False)
ROUTINGS = [QUIET, 'variance', 'random', 'uniform', 'finest']


def build(routing=QUIET, arch=ARCH, **kwargs):
    """A small model whose routers really differ from region to region."""
    kwargs = {'pretrain_img_size': 128, 'drop_path_rate': 0.0, **kwargs}
    model = DGEDeiT(arch, routing=routing, **kwargs)
    for name, parameter in model.named_parameters():
        if 'router.gate.weight' in name:
            nn.init.normal_(parameter, std=0.5)
        elif 'router.gate.bias' in name:
            nn.init.zeros_(parameter)
        elif 'norm' not in name:  # out of the linear regime around zero
            parameter.data.mul_(3)
    return model


class TestAgainstTheOfficialCode:
    @pytest.fixture
    def golden(self, test_data):
        return np.load(test_data / 'golden' / 'dge_deit_cls.npz')

    @pytest.fixture
    def official(self, golden):
        backbone = DGEDeiT(
            ARCH,
            routing=QUIET,
            out_type='cls_token',
            pretrain_img_size=128,
            drop_path_rate=0.0,
        )
        state = {
            key[3:]: torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('sd.')
        }
        head = nn.Linear(48, 10)
        head.load_state_dict(
            {k: state[f'head.{k}'] for k in ('weight', 'bias')}
        )
        backbone.load_state_dict(state)
        return backbone, head

    @pytest.mark.parametrize('mode', ['eval', 'train'])
    def test_logits(self, official, golden, mode):
        backbone, head = official
        (feat,) = backbone.train(mode == 'train')(torch.tensor(golden['x']))
        expected = torch.tensor(golden[f'{mode}.logits'])
        torch.testing.assert_close(head(feat), expected, atol=1e-5, rtol=0)

    def test_query_counts(self, official, golden):
        backbone, _ = official
        backbone.eval()(torch.tensor(golden['x']))
        counts = [
            16 * routed.query_share.flatten(1).sum(1) + 1  # the cls token
            for routed in backbone.cost.maps
        ]
        expected = torch.tensor(golden['eval.num_queries'], dtype=torch.double)
        assert torch.stack(counts, 1).equal(expected)

    def test_task_gradients(self, official, golden):
        backbone, head = official
        (feat,) = backbone.train()(torch.tensor(golden['x']))
        probe = torch.tensor(golden['train.probe.logits'])
        loss = (probe * head(feat)).mean()
        torch.testing.assert_close(
            loss.detach(), torch.tensor(golden['train.task_loss']).float()
        )
        loss.backward()
        named = [
            *backbone.named_parameters(),
            *((f'head.{k}', p) for k, p in head.named_parameters()),
        ]
        for name, parameter in named:
            key = 'grad_task.' + name.replace('.router.', '.dge.router.')
            expected = torch.tensor(golden[key])
            torch.testing.assert_close(
                parameter.grad,
                expected,
                rtol=0,
                atol=1e-4 * expected.abs().max().item(),
                msg=lambda text, name=name: f'{name}: {text}',
            )


def load_into_mmpretrain(host, model):
    """Give mmpretrain's model our weights, under its names."""
    (layout,) = [layout for layout in LAYOUTS if layout.name == 'mmpretrain']
    theirs, dropped = from_ours(model.state_dict(), layout)
    assert not dropped
    host.load_state_dict(theirs)
    host.eval()  # returns None


class TestAgreement:
    @pytest.mark.parametrize('distilled', [False, True])
    @pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
    @pytest.mark.parametrize('size', [(128, 128), (96, 160), (100, 75)])
    def test_finest_equals_mmpretrains(self, distilled, out_type, size):
        backbones = pytest.importorskip('mmpretrain.models.backbones')
        model = build(
            'finest', distilled=distilled, out_type=out_type,
            out_indices=(1, 2),
        ).eval()  # fmt: skip
        host = (
            backbones.DistilledVisionTransformer
            if distilled
            else backbones.VisionTransformer
        )(ARCH, img_size=128, out_type=out_type, out_indices=[1, 2])
        load_into_mmpretrain(host, model)
        x = torch.rand(2, 3, *size)
        outs, expected = model(x), host(x)
        assert len(outs) == 2
        torch.testing.assert_close(outs, expected, atol=2e-5, rtol=0)

    @pytest.mark.parametrize('distilled', [False, True])
    @pytest.mark.parametrize('size', [(128, 128), (100, 180)])
    def test_training_path_equals_packed_path(self, distilled, size):
        model = build(distilled=distilled, patch_size=8)
        # Regions that differ, not only their pixels.
        coarse = torch.randn(3, 3, *(side // 20 for side in size))
        x = nn.functional.interpolate(coarse, size)
        (gated,) = model(x)
        trained = model.cost
        (packed,) = model.eval()(x)
        assert trained.dynamic.equal(model.cost.dynamic)
        assert model.cost.region_spread.min() > 0
        torch.testing.assert_close(gated, packed, atol=1e-5, rtol=0)

    @pytest.mark.parametrize('routing', [QUIET, 'variance', 'uniform'])
    def test_a_batch_equals_its_images(self, routing):
        model = build(routing, out_type='cls_token', distilled=True).eval()
        x = torch.rand(3, 3, 140, 100)
        ((cls_token, dist_token),) = model(x)
        costs = model.cost.dynamic
        for i in range(3):
            ((a, b),) = model(x[i : i + 1])
            assert model.cost.dynamic.item() == costs[i]
            torch.testing.assert_close(a[0], cls_token[i])
            torch.testing.assert_close(b[0], dist_token[i])

    def test_extra_tokens_are_never_pooled(self):
        """With all regions coarsest there is a query for each of them."""
        coarsest = dict(type='UniformRouter', share=(0, 0, 1))
        model = build(coarsest, distilled=True).eval()
        x = torch.rand(1, 3, 128, 128)
        assert count(model, x) == model.cost.dynamic.item()
        # 4 regions and 2 extra tokens as queries, 66 keys, 3 blocks
        dim, queries, keys = 48, 4 + 2, 64 + 2
        block = (
            2 * keys * dim**2
            + queries * (2 * dim**2 + 2 * keys * dim + 2 * dim * 192)
        )  # fmt: skip
        embed = 64 * 3 * 16 * 16 * dim
        assert model.cost.dynamic.item() == 3 * block + embed


def count(model, x):
    """What PyTorch's counter sees, in multiply-adds."""
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    return counter.get_total_flops() / 2


class TestFlops:
    @pytest.mark.parametrize('routing', ROUTINGS)
    @pytest.mark.parametrize('distilled', [False, True])
    @pytest.mark.parametrize(
        'shape', [(1, 128, 128), (2, 64, 160), (3, 100, 77), (2, 5, 33)]
    )
    def test_formula_equals_counter(self, routing, distilled, shape):
        model = build(routing, distilled=distilled).eval()
        x = torch.rand(shape[0], 3, *shape[1:])
        assert count(model, x) == model.cost.dynamic.sum()
        if routing == QUIET:
            state = {
                k: v
                for k, v in model.state_dict().items()
                if 'router' not in k
            }
            dense = build('finest', distilled=distilled).eval()
            dense.load_state_dict(state)
            assert count(dense, x) == model.cost.dense.sum()

    @pytest.mark.parametrize(
        'arch, gflops', [('tiny', 1.717), ('small', 6.163), ('base', 23.24)]
    )
    def test_dense_flops_are_deits(self, arch, gflops):
        """At 256 x 256; the paper's formula counts norms and softmax, too."""
        model = DGEDeiT(arch, routing='finest', pretrain_img_size=256).eval()
        with torch.no_grad():
            model(torch.rand(1, 3, 256, 256))
        assert model.cost.dense.item() / 1e9 == pytest.approx(gflops, rel=0.02)


class TestAnyInput:
    @given(
        height=st.integers(1, 150),
        width=st.integers(1, 150),
        routing=st.sampled_from(ROUTINGS),
        batch_size=st.sampled_from([1, 2, 5]),
        training=st.booleans(),
        patch_size=st.sampled_from([8, 16]),
    )
    @settings(max_examples=50, deadline=None)
    def test_any_size(
        self, height, width, routing, batch_size, training, patch_size
    ):
        model = build(routing, patch_size=patch_size).train(training)
        (out,) = model(torch.rand(batch_size, 3, height, width))
        rounded = (-(-height // patch_size), -(-width // patch_size))
        assert out.shape == (batch_size, 48, *rounded)
        assert out.isfinite().all()
        assert (model.cost.dense > 0).all()


class TestTraining:
    @pytest.mark.parametrize('routing', [QUIET, 'variance', 'finest'])
    @pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
    @pytest.mark.parametrize('distilled', [False, True])
    @pytest.mark.parametrize('sparse_training', [False, True])
    def test_every_parameter_gets_a_gradient(
        self, routing, out_type, distilled, sparse_training
    ):
        model = build(
            routing,
            out_type=out_type,
            distilled=distilled,
            sparse_training=sparse_training,
        )
        (out,) = model(torch.rand(2, 3, 96, 96))
        outs = out if isinstance(out, tuple) else (out,)
        sum(part.square().sum() for part in outs).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None]
        assert not without

    def test_frozen_stages_stay_frozen(self):
        model = build('variance', frozen_stages=2).train()
        frozen = {
            name.split('.')[0] + '.' + name.split('.')[1]
            if name.startswith('blocks')
            else name.split('.')[0]
            for name, p in model.named_parameters()
            if not p.requires_grad
        }
        assert frozen == {
            *('cls_token', 'pos_embed', 'patch_embed'),
            *('blocks.0', 'blocks.1'),
        }
        assert not model.blocks[1].training and model.blocks[2].training
        assert model.blocks[1].router.training

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize('training', [False, True])
    def test_autocast(self, dtype, training):
        model = build(dict(type='GumbelRouter')).train(training)
        with torch.autocast('cpu', dtype):
            (out,) = model(torch.rand(2, 3, 100, 130))
        assert out.isfinite().all()
        assert model.cost.dynamic.dtype == torch.float64


def test_layers_further_down_learn_slower():
    """As mmpretrain's fine-tuning of plain ViTs has it."""
    optimizers = pytest.importorskip('mmpretrain.engine.optimizers')
    from mmpretrain.models import ImageClassifier

    init_default_scope('mmpretrain')
    head = dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=48)
    backbone = dict(type='mmdge.DGEDeiT', arch=ARCH)
    model = ImageClassifier(backbone, head=head)
    constructor = optimizers.LearningRateDecayOptimWrapperConstructor(
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        ),
        dict(layer_decay_rate=0.5),
    )
    optimizer = constructor(model).optimizer
    rates = {
        name: group['lr']
        for group in optimizer.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is p for p in group['params'])
    }
    # Embeddings, three blocks, and what follows.
    assert rates['backbone.pos_embed'] == rates['backbone.cls_token'] == 1 / 16
    assert rates['backbone.blocks.0.mlp.fc1.weight'] == 1 / 8
    assert rates['backbone.blocks.2.router.gate.bias'] == 1 / 2
    assert rates['backbone.norm.weight'] == rates['head.fc.weight'] == 1


class TestArguments:
    def test_blocks_after_the_last_output_are_not_built(self):
        model = build(out_indices=(0, 1))
        assert len(model.blocks) == 2
        assert isinstance(model.norm, nn.Identity)

    def test_without_final_norm(self):
        x = torch.rand(1, 3, 64, 64)
        model = build('finest').eval()
        raw = build('finest', final_norm=False).eval()
        raw.load_state_dict(
            {
                k: v
                for k, v in model.state_dict().items()
                if not k.startswith('norm.')
            }
        )
        (out,) = raw(x)
        normed = model.norm(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(model(x)[0], normed)

    def test_the_mlp_is_as_wide_as_asked(self):
        # 56 * (488 / 56) is a little less than 488
        arch = dict(ARCH, embed_dims=56, num_heads=4, feedforward_channels=488)
        assert DGEDeiT(arch).blocks[0].mlp.fc1.out_features == 488

    @pytest.mark.parametrize(
        'kwargs, message',
        [
            (
                dict(arch='large'),
                "'large' is unknown.*'tiny', 'small', 'base'",
            ),
            (dict(arch=dict(embed_dims=48)), 'one positive integer to each'),
            (dict(out_type='raw'), "'featmap' or 'cls_token'.*'raw'"),
            (dict(out_indices=3), 'out_indices=3.*0 to 2'),
            (dict(out_indices=(2, 1)), 'ascending'),
            (dict(out_indices=()), 'out_indices'),
            (dict(out_indices='x'), "out_indices='x'"),
            (dict(out_indices=1.5), 'out_indices=1.5'),
            (dict(frozen_stages=4), 'frozen_stages=4.*at most 3'),
            (dict(patch_size=0), 'patch_size.*0'),
            (dict(pretrain_img_size=8), 'at least 16.*8'),
            (dict(granularities=(1, 2, 3)), 'each must divide the last'),
        ],
    )
    def test_mistakes_are_named(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            DGEDeiT(**{'arch': ARCH, **kwargs})

    @pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64)])
    def test_wrong_input_is_named(self, shape):
        with pytest.raises(ValueError, match=r'\(B, 3, H, W\)'):
            build()(torch.rand(shape))
