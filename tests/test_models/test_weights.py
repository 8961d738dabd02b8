"""Weights of other code bases: they load, they agree, or they are refused."""

import copy
import re

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, MMDistributedDataParallel
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmdge.models import (
    DGEDPVT,
    DGEPVT,
    DGEConvNeXt,
    DGEDeiT,
    DGEPVTv2,
    DGESwin,
    DGEViT,
)
from mmdge.models.architectures import LAYOUTS
from mmdge.models.weights import from_ours, recognise, to_ours, unwrap
from mmdge.utils import UserError
from tests import hostile
from tests.small import (
    CONVNEXT,
    DINO,
    SWIN,
    DGELVViT,
    dynamic_swin,
    token_routing,
)

PVT = dict(
    embed_dims=(16, 32, 40, 64),
    num_layers=(1, 2, 1, 1),
    num_heads=(1, 2, 5, 8),
)
DEIT = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=96)
RANKED = dict(type='QuantileRouter', score='learned')
QUIET = dict(type='GumbelRouter', noise=False)
IDS = [f'{layout.name}-{layout.family}' for layout in LAYOUTS]


def pvt(routing='finest', **kwargs):
    return DGEPVT(
        **dict(dict(arch=PVT, routing=routing, pretrain_img_size=64), **kwargs)
    )


def dpvt(routing='finest', **kwargs):
    return DGEDPVT(
        **dict(dict(arch=PVT, routing=routing, pretrain_img_size=64), **kwargs)
    )


def deit(routing='finest', **kwargs):
    return DGEDeiT(
        **dict(
            dict(arch=DEIT, routing=routing, pretrain_img_size=64), **kwargs
        )
    )


def dinov2(routing='finest', **kwargs):
    return deit(routing, **{**DINO, **kwargs})


def pvt_v2(routing='finest', **kwargs):
    return DGEPVTv2(**dict(dict(arch=PVT, routing=routing), **kwargs))


def convnext(routing='finest', **kwargs):
    return DGEConvNeXt(CONVNEXT, routing=routing, out_indices=3, **kwargs)


def swin(routing='finest', **kwargs):
    # A classifier's file has one norm.
    kwargs = dict(dict(arch=SWIN, window_size=4, out_indices=-1), **kwargs)
    return DGESwin(routing=routing, **kwargs)


def lvvit(routing='finest', **kwargs):
    kwargs = dict(dict(arch=DEIT, pretrain_img_size=64), **kwargs)
    return DGELVViT(routing=routing, **kwargs)


POSED = dict(PVT=pvt, ViT=deit)  # with position embeddings
BUILD = dict(
    PVTv2=pvt_v2,
    **POSED,
    DPVT=dpvt,
    ConvNeXt=convnext,
    Swin=swin,
    LVViT=lvvit,
)


def shaken(model):
    """Give every entry a value of its own, norms and biases too."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval() or model  # mmpretrain's eval returns None


def layout_of(name, family):
    (found,) = [la for la in LAYOUTS if la[:2] == (family, name)]
    return found


def same(a, b):
    assert a.keys() == b.keys()
    assert all(a[key].equal(b[key]) for key in a)


def outputs_agree(model, host, size=(64, 96)):
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(
        model.eval()(x), host(x), atol=1e-5, rtol=0, check_stride=False
    )


class Detector(BaseModule):
    """A host's model: a backbone and something else."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Linear(2, 2)


@pytest.fixture
def log(caplog):
    """What the loading said."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def file(tmp_path):
    """Save something; return the path."""

    def save(content, name='weights.pth'):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save


def pretrained(build, path, routing='finest', prefix=None, **kwargs):
    init = dict(type='Pretrained', checkpoint=path)
    if prefix:
        init['prefix'] = prefix
    model = build(routing, init_cfg=init, **kwargs)
    model.init_weights()
    return model


class TestHosts:
    """Their own models with their own state dicts are the truth."""

    @pytest.fixture
    def mmdets(self):
        from mmdet.models.backbones import PyramidVisionTransformer

        # mmdet's widths are embed_dims times the heads.
        host = PyramidVisionTransformer(
            pretrain_img_size=64,
            embed_dims=16,
            num_layers=PVT['num_layers'],
            num_heads=PVT['num_heads'],
            norm_cfg=dict(type='LN', eps=1e-6),
        )
        # mmdet gives all norms one eps; the official code, and ours, 1e-5.
        for layer in host.layers:
            layer[0].norm.eps = 1e-5
            for block in layer[1][1:]:
                if block.attn.sr_ratio > 1:
                    block.attn.norm.eps = 1e-5
        return shaken(host)

    @pytest.mark.parametrize(
        'whole, prefix',
        [(False, None), (True, None), (True, 'backbone.')],
    )
    def test_mmdets_pvt(self, mmdets, file, whole, prefix):
        host = Detector(mmdets) if whole else mmdets
        path = file({'meta': {}, 'state_dict': host.state_dict()})
        arch = dict(PVT, embed_dims=(16, 32, 80, 128))
        model = pretrained(pvt, path, prefix=prefix, arch=arch)
        outputs_agree(model, mmdets)
        theirs, _ = from_ours(model.state_dict(), layout_of('mmdet', 'PVT'))
        same(theirs, mmdets.state_dict())
        dynamic = pretrained(pvt, path, 'variance', prefix=prefix, arch=arch)
        dynamic.eval()(torch.rand(1, 3, 64, 64))
        assert dynamic.cost.ratio < 0.9

    @pytest.mark.parametrize('distilled', [False, True])
    @pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
    def test_mmpretrains_deit(self, file, distilled, out_type):
        backbones = pytest.importorskip('mmpretrain.models.backbones')
        host = shaken(
            (
                backbones.DistilledVisionTransformer
                if distilled
                else backbones.VisionTransformer
            )(DEIT, img_size=64, out_type=out_type)
        )
        path = file({'state_dict': Detector(host).state_dict()})
        model = pretrained(deit, path, distilled=distilled, out_type=out_type)
        outputs_agree(model, host)

    def test_a_whole_detector_becomes_dynamic(self, mmdets):
        """As load_from and test.py load: all of it, not only the backbone."""
        host = Detector(mmdets)
        arch = dict(PVT, embed_dims=(16, 32, 80, 128))
        model = Detector(pvt('variance', arch=arch))
        load_state_dict(model, host.state_dict())
        assert model.neck.weight.equal(host.neck.weight)
        twin = pvt(arch=arch)
        twin.load_state_dict(model.backbone.state_dict())
        outputs_agree(twin, mmdets)


class TestDINOv2:
    @pytest.mark.parametrize('name', ['official', 'mmpretrain', 'hf-dinov2'])
    @pytest.mark.parametrize(
        'wrap',
        [
            lambda state: state,
            lambda state: {  # as its training writes it
                'teacher': {
                    'dino_head.mlp.0.weight': torch.rand(2, 2),
                    **{
                        re.sub(r'^blocks\.', 'backbone.blocks.0.', key)
                        if key.startswith('blocks.')
                        else f'backbone.{key}': value
                        for key, value in state.items()
                    },
                }
            },
            lambda state: {
                'classifier.weight': torch.rand(2, 2),
                **{f'dinov2.{key}': value for key, value in state.items()},
            },
        ],
        ids=['flat', 'teacher', 'dinov2.'],
    )
    def test_every_file_loads(self, name, wrap):
        registers = 0 if name == 'mmpretrain' else 2
        source = shaken(dinov2(num_register_tokens=registers))
        layout = layout_of(name, 'ViT')
        theirs, dropped = from_ours(source.state_dict(), layout)
        assert not dropped
        mask = 'embeddings.mask_token' if name[:2] == 'hf' else 'mask_token'
        state = wrap({**theirs, mask: torch.zeros(1, 48)})
        model = dinov2('variance', num_register_tokens=registers)
        model.load_state_dict(state)  # strict
        found = model.state_dict()
        same(
            {key: found[key] for key in source.state_dict()},
            source.state_dict(),
        )

    def test_names_of_hugging_face(self):
        state = shaken(dinov2()).state_dict()
        theirs, _ = from_ours(state, layout_of('hf-dinov2', 'ViT'))
        block = {
            key.removeprefix('encoder.layer.2.')
            for key in theirs
            if key.startswith('encoder.layer.2.')
        }
        linear = (
            *('attention.attention.query', 'attention.attention.key'),
            *('attention.attention.value', 'attention.output.dense'),
            *('norm1', 'norm2', 'mlp.weights_in', 'mlp.weights_out'),
        )
        assert block == {
            *('layer_scale1.lambda1', 'layer_scale2.lambda1'),
            *(
                f'{part}.{kind}'
                for part in linear
                for kind in ('weight', 'bias')
            ),
        }
        assert {key for key in theirs if 'encoder' not in key} == {
            *('embeddings.cls_token', 'embeddings.register_tokens'),
            'embeddings.position_embeddings',
            'embeddings.patch_embeddings.projection.weight',
            'embeddings.patch_embeddings.projection.bias',
            *('layernorm.weight', 'layernorm.bias'),
        }
        official, _ = from_ours(state, layout_of('official', 'ViT'))
        parts = ('query', 'key', 'value')
        stem = 'encoder.layer.2.attention.attention'
        assert torch.cat(
            [theirs[f'{stem}.{part}.weight'] for part in parts]
        ).equal(official['blocks.2.attn.qkv.weight'])
        theirs, _ = from_ours(
            deit(distilled=True).state_dict(), layout_of('hf-vit', 'ViT')
        )
        assert 'embeddings.distillation_token' in theirs
        for part in (
            *('layernorm_before', 'layernorm_after', 'attention.output.dense'),
            *('intermediate.dense', 'output.dense'),
        ):
            assert f'encoder.layer.0.{part}.bias' in theirs

    def test_real_ones_give_what_mmpretrain_gives(self, test_data):
        backbones = pytest.importorskip('mmpretrain.models.backbones')
        path = test_data / 'weights' / 'dinov2_vits14_fp16.pth'
        if not path.is_file():
            pytest.skip(f'no weights at {path}')
        state = torch.load(path, weights_only=True)  # float16
        model = DGEViT('dinov2-small', routing='finest', out_indices=(3, 11))
        model.load_state_dict(state)
        assert model.pos_embed.dtype == torch.float32
        host = backbones.VisionTransformer(
            'dinov2-small',
            img_size=518,
            patch_size=14,
            layer_scale_init_value=1e-5,
            out_type='featmap',
            out_indices=[3, 11],
        )
        theirs, dropped = from_ours(
            to_ours(state, layout_of('official', 'ViT')),
            layout_of('mmpretrain', 'ViT'),
        )
        assert not dropped
        host.load_state_dict(theirs)
        host.eval()
        with torch.no_grad():
            x = torch.randn(1, 3, 140, 196)
            for ours, expected in zip(model.eval()(x), host(x), strict=True):
                torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


class TestOfficialDGE:
    """The golden files hold the official code's own state dicts."""

    def load(self, test_data, name, file, build, **kwargs):
        golden = np.load(test_data / 'golden' / f'{name}.npz')
        state = {
            key[3:]: torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('sd.')
        }
        model = pretrained(
            build,
            file({'model': state, 'epoch': 3}),
            QUIET,
            pretrain_img_size=128,
            **kwargs,
        )
        return golden, state, model.eval()(torch.tensor(golden['x']))

    def test_pvt(self, test_data, file, log):
        golden, _, outs = self.load(
            test_data, 'dge_pvt_dense_maps', file, pvt, with_cls_token=True
        )
        for i, out in enumerate(outs, start=2):
            expected = torch.tensor(golden[f'eval.res{i}'])
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        assert 'vtpack PVT layout' in log.text

    def test_deit(self, test_data, file, log):
        golden, state, (token,) = self.load(
            test_data,
            'dge_deit_cls',
            file,
            deit,
            arch=dict(DEIT, feedforward_channels=192),
            out_type='cls_token',
        )
        logits = token @ state['head.weight'].T + state['head.bias']
        torch.testing.assert_close(
            logits, torch.tensor(golden['eval.logits']), atol=1e-5, rtol=0
        )
        assert 'vtpack ViT layout' in log.text


class TestFiles:
    @pytest.mark.parametrize('layout', LAYOUTS, ids=IDS)
    @pytest.mark.parametrize(
        'wrap',
        [
            lambda state: state,
            lambda state: {'model': state, 'epoch': 1, 'args': None},
            lambda state: {'state_dict': state, 'meta': {'epoch': 1}},
            lambda state: {f'module.{k}': v for k, v in state.items()},
            lambda state: {
                'state_dict': {
                    'neck.weight': torch.rand(2, 2),
                    **{f'backbone.{k}': v for k, v in state.items()},
                }
            },
        ],
        ids=['flat', 'model', 'state_dict', 'module.', 'backbone.'],
    )
    def test_every_file_loads_in_every_way(self, layout, wrap, file):
        build = BUILD[layout.family]
        source = shaken(build('learned'))
        expected = source.state_dict()
        path = file(wrap(from_ours(expected, layout)[0]))
        if layout.name not in ('vtpack', 'mmdge'):
            expected = {k: v for k, v in expected.items() if '.rou' not in k}
        routed = build('learned')
        routed.load_state_dict(torch.load(path))  # strict
        for model in (pretrained(build, path, 'learned'), routed):
            state = model.state_dict()
            same({key: state[key] for key in expected}, expected)
        static = build('finest')
        load_checkpoint(static, path, strict=True)
        same(
            static.state_dict(),
            {k: v for k, v in expected.items() if '.router.' not in k},
        )


class TestPositions:
    @pytest.mark.parametrize('side', [32, 64, 96, 256])
    @pytest.mark.parametrize('cls_token', [False, True])
    def test_pvt(self, side, cls_token):
        """What is loaded resized gives what is resized as it runs."""
        source = shaken(pvt(pretrain_img_size=side, with_cls_token=True))
        model = pvt(with_cls_token=cls_token)
        model.load_state_dict(source.state_dict())
        x = torch.rand(1, 3, 64, 64)
        # Without the cls token stage 4 has one key less.
        pairs = zip(model.eval()(x), source(x), strict=True)
        for a, b in list(pairs)[: 3 + cls_token]:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)

    @pytest.mark.parametrize('side', [32, 64, 96, 256])
    @pytest.mark.parametrize('distilled', [False, True])
    def test_deit(self, side, distilled):
        source = shaken(deit(pretrain_img_size=side, distilled=distilled))
        state = source.state_dict()
        model = deit(distilled=distilled)
        model.load_state_dict(state)
        extra = 1 + distilled
        assert model.pos_embed[:, :extra].equal(state['pos_embed'][:, :extra])
        outputs_agree(model, source, (64, 64))

    def test_a_plain_deit_takes_the_cls_row_of_a_distilled(self):
        source = shaken(deit(distilled=True, pretrain_img_size=96))
        model = deit()
        model.load_state_dict(source.state_dict())
        assert model.pos_embed[:, 0].equal(source.pos_embed[:, 0])
        assert model.pos_embed.shape == (1, 17, 48)

    def test_mmdets_has_no_cls_row(self):
        source = shaken(pvt(with_cls_token=True))
        theirs, _ = from_ours(source.state_dict(), layout_of('mmdet', 'PVT'))
        model = pvt()
        model.load_state_dict(theirs)
        assert model.pos_embed4.equal(source.pos_embed4[:, 1:])

    def test_half_precision(self):
        source = shaken(deit(pretrain_img_size=96)).half()
        model = deit()
        model.load_state_dict(source.state_dict())
        assert model.pos_embed.dtype == torch.float32


class TestReport:
    def test_it_counts_and_names(self, log):
        state = {
            **shaken(
                pvt(
                    'learned',
                    with_cls_token=True,
                    out_type='cls_token',
                    pretrain_img_size=96,
                )
            ).state_dict(),
            'head.weight': torch.rand(10, 64),
            'head.bias': torch.rand(10),
        }
        model = pvt('variance', out_indices=(0, 2))
        model.load_state_dict(state)
        (record,) = [r for r in log.records if 'layout: ' in r.getMessage()]
        assert record.levelname == 'INFO'
        own = model.state_dict()
        routers = [key for key in own if '.router.' in key]
        message = record.getMessage()
        assert message.startswith(
            f'DGEPVT from the mmdge PVT layout: {len(own) - len(routers)} '
            'entries loaded; resized: pos_embed1 from 24x24 to 16x16, '
            'pos_embed2 from 12x12 to 8x8, pos_embed3 from 6x6 to 4x4; '
            f'{len(routers)} left at their initial values: '
            'block1.0.router.history,'
        )
        for part in (
            'dropped, after the last output: ',
            "12 dropped, another routing's: block1.0.router.sides",
            '1 dropped, an extra token, unused here: cls_token',
            '2 dropped, the final norm, unused here: norm.weight, norm.bias',
            '2 dropped, the classification head: head.weight, head.bias',
        ):
            assert part in message

    def test_a_whole_model_names_its_other_parts(self, log, file):
        path = file(Detector(shaken(deit())).state_dict())
        pretrained(deit, path)
        assert '2 dropped, not of the backbone: neck.weight' in log.text

    def test_final_norm_and_blocks_that_are_not_built(self, log):
        state = shaken(deit(distilled=True)).state_dict()
        deit(out_indices=1).load_state_dict(state)
        assert 'unused here: dist_token' in log.text
        assert 'unused here: norm.weight, norm.bias' in log.text
        assert 'after the last output: blocks.2.norm1.weight' in log.text

    def test_what_decides_is_named_before_norms(self, log):
        dynamic_swin().load_state_dict(swin().state_dict())
        assert 'left at their initial values: score_predictor.0.' in log.text

    def test_splits_are_compared(self, log):
        source = shaken(deit('learned'))
        theirs, _ = from_ours(source.state_dict(), layout_of('vtpack', 'ViT'))
        model = deit('learned')
        model.load_state_dict(theirs)
        same(model.state_dict(), source.state_dict())
        assert 'left at their initial' not in log.text
        # Nobody asks for those of routers that aren't used.
        deit('variance', granularities=(1, 2)).load_state_dict(theirs)
        deit('finest', granularities=(1, 2)).load_state_dict(theirs)


class TestRouters:
    @pytest.mark.parametrize('build', POSED.values(), ids=POSED)
    @pytest.mark.parametrize('routing', ['learned', 'variance', RANKED])
    def test_our_own_is_loaded_to_the_last_bit(self, build, routing, file):
        source = build(routing).train()
        source(torch.rand(2, 3, 64, 64))
        if routing != 'learned':
            assert all(r.num_updates == 1 for r in source.routers)
        path = file({'state_dict': Detector(source).state_dict()})
        model = Detector(build(routing))
        load_checkpoint(model, path)
        same(model.backbone.state_dict(), source.state_dict())
        same(
            pretrained(build, path, routing, prefix='backbone.').state_dict(),
            source.state_dict(),
        )

    def test_a_ranking_to_be_learned_goes_on_from_the_variance(self):
        source = pvt('variance').train()
        source(torch.rand(2, 3, 64, 64))
        model = pvt(RANKED)
        model.block1[0].router.rank_head.weight.data.fill_(3.0)
        model.load_state_dict(source.state_dict())
        router = model.block1[0].router
        assert router.quantiles.equal(source.block1[0].router.quantiles)
        assert router.num_updates == 1
        assert router.rank_head.weight[0, :-1].eq(0).all()

    def test_other_routers_start_anew(self):
        """Whatever the model was before; only what the file says counts."""
        source = pvt(RANKED).train()
        source(torch.rand(2, 3, 64, 64))
        for routing in ('variance', 'learned'):
            model = pvt(routing).train()
            model(torch.rand(2, 3, 64, 64))
            for router in model.routers:
                for parameter in router.parameters():
                    parameter.data.fill_(3.0)
            model.load_state_dict(source.state_dict())
            for router in model.routers:
                if routing == 'variance':
                    assert router.num_updates == 0
                else:
                    assert router.gate.weight.abs().max() < 0.1

    def test_routers_start_alike_in_all_processes(self):
        state = pvt().state_dict()
        first, second = pvt('learned'), pvt('learned')
        first.load_state_dict(state)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        second.load_state_dict(state)
        assert torch.get_rng_state().equal(before)
        same(first.state_dict(), second.state_dict())

    @pytest.mark.parametrize(
        'kwargs',
        [
            dict(granularities=(1, 2)),
            dict(routing=dict(type='QuantileRouter', num_steps=64)),
        ],
    )
    def test_what_others_remember_is_forgotten_as_ever(self, kwargs):
        source = pvt('variance').train()
        source(torch.rand(2, 3, 64, 64))
        model = pvt(**dict(dict(routing='variance'), **kwargs))
        with pytest.warns(UserWarning, match='another kind of router'):
            model.load_state_dict(source.state_dict())
        assert all(r.num_updates == 0 for r in model.routers)
        assert model.block1[0].mlp.fc1.weight.equal(
            source.block1[0].mlp.fc1.weight
        )


class TestWaysToLoad:
    """All ways end in one place; a DeiT of mmpretrain's shows it."""

    @pytest.fixture
    def source(self):
        return shaken(deit())

    @pytest.fixture
    def whole(self, source):
        theirs, _ = from_ours(
            source.state_dict(), layout_of('mmpretrain', 'ViT')
        )
        state = {f'backbone.{k}': v for k, v in theirs.items()}
        return {
            **state,
            'neck.weight': torch.rand(2, 2),
            'neck.bias': torch.rand(2),
        }

    def test_under_a_parallel_wrapper(self, source, whole, file, tmp_path):
        torch.distributed.init_process_group(
            'gloo',
            init_method=f'file://{tmp_path}/store',
            rank=0,
            world_size=1,
        )
        try:
            model = MMDistributedDataParallel(Detector(deit('variance')))
            load_checkpoint(model, file({'state_dict': whole}))
        finally:
            torch.distributed.destroy_process_group()
        state = model.module.backbone.state_dict()
        same({k: state[k] for k in source.state_dict()}, source.state_dict())

    def test_pytorch_alone(self, source, whole):
        model = Detector(deit())
        model.load_state_dict(whole)  # strict
        same(model.backbone.state_dict(), source.state_dict())
        shadow = copy.deepcopy(model)
        shadow.load_state_dict(whole, assign=True)
        same(shadow.backbone.state_dict(), source.state_dict())

    def test_the_state_dict_stays_as_it_is(self, whole):
        names, values = list(whole), list(whole.values())
        Detector(deit()).load_state_dict(whole)
        assert list(whole) == names
        assert all(a is b for a, b in zip(values, whole.values(), strict=True))


def without(state, *names):
    return {k: v for k, v in state.items() if k not in names}


def small_pvt():
    return DGEPVT('small', routing='finest').state_dict()


class TestRefusals:
    """Each names what is wrong and what to do; nothing is half loaded."""

    @pytest.mark.parametrize(
        'build, state, message',
        [
            (
                lambda: DGEPVT('tiny', routing='finest'),
                small_pvt,
                r'official PVT layout.* holds 140 unknown \(block1\.2\.norm1'
                r'.*, \.\.\.\); its sizes are num_layers=\(3, 4, 6, 3\), '
                r"embed_dims=\(64, 128, 320, 512\): set arch='small'",
            ),
            (
                lambda: DGEPVT('medium', routing='finest'),
                small_pvt,
                r'lacks 216 of its entries \(block3\.6\.norm1\.weight '
                r"\(320,\), .*set arch='small'",
            ),
            (
                pvt,
                lambda: pvt(
                    arch=dict(PVT, embed_dims=(24, 32, 40, 64))
                ).state_dict(),
                r'of other shapes \(pos_embed1 \(1, 256, 24\) in place of '
                r'\(1, 256, 16\).*arch=dict\(num_layers=\(1, 2, 1, 1\), '
                r'embed_dims=\(24, 32, 40, 64\)',
            ),
            (
                lambda: DGEDeiT('tiny', routing='finest'),
                lambda: DGEDeiT('small', routing='finest').state_dict(),
                r"embed_dims=384: set arch='small'",
            ),
            (
                pvt,
                lambda: from_ours(
                    deit().state_dict(), layout_of('official', 'ViT')
                )[0],
                r'holds a ViT \(official layout\), but the backbone is DGEPVT'
                r"; use the weights of a PVT, or set type='mmdge.DGEViT'",
            ),
            (
                token_routing,
                lambda: pvt().state_dict(),
                'holds a PVT .*; use the weights of a PVTv2, or set',
            ),
            (
                deit,
                lambda: from_ours(
                    pvt().state_dict(), layout_of('mmdet', 'PVT')
                )[0],
                r'holds a PVT \(mmdet layout\), but the backbone is DGEDeiT',
            ),
            (
                pvt,
                lambda: without(pvt().state_dict(), 'block2.1.attn.kv.bias'),
                r'lacks 1 of its entries \(block2\.1\.attn\.kv\.bias '
                r'\(64,\)\); use weights of this architecture',
            ),
            (
                deit,
                lambda: dict(deit().state_dict(), gamma=torch.zeros(2)),
                r'holds 1 unknown \(gamma\)',
            ),
            (
                deit,
                lambda: dict(deit().state_dict(), epoch=3),
                r'holds 1 unknown \(epoch\)',
            ),
            (
                deit,
                lambda: dict(deit().state_dict(), cls_token=None),
                r'holds 1 unknown \(cls_token\)',
            ),
            (
                lambda: pvt(with_cls_token=True),
                lambda: pvt().state_dict(),
                r'lacks 1 of .* \(cls_token.*set with_cls_token=False',
            ),
            (
                lambda: deit(distilled=True),
                lambda: deit().state_dict(),
                r'lacks 1 of its entries \(dist_token.*set distilled=False',
            ),
            (
                deit,
                lambda: deit(patch_size=8).state_dict(),
                r'patch_embed\.proj\.weight \(48, 3, 8, 8\) in place of '
                r'\(48, 3, 16, 16\)\); set patch_size=8$',
            ),
            (
                deit,
                lambda: dict(
                    deit().state_dict(), pos_embed=torch.zeros(1, 13, 48)
                ),
                r'pos_embed \(1, 13, 48\) in place of \(1, 17, 48\)',
            ),
            (
                pvt,
                lambda: dict(
                    pvt().state_dict(), pos_embed1=torch.zeros(1, 0, 16)
                ),
                r'pos_embed1 \(1, 0, 16\) in place of \(1, 256, 16\)',
            ),
            (
                lambda: deit('learned'),
                lambda: deit('learned', granularities=(1, 2)).state_dict(),
                r'choose among the granularities \(1, 2\) \(blocks\.0\.'
                r'router\.sides\).*among \(1, 2, 4\); set granularities=',
            ),
            (
                lambda: pvt('learned'),
                lambda: pvt('learned', granularities=(1, 2, 8)).state_dict(),
                r'choose among the granularities \(1, 2, 8\) .*among '
                r'\(1, 2, 4\); set granularities=\(1, 2, 8\)',
            ),
            (
                lambda: deit('learned'),
                lambda: {
                    key: value
                    for key, value in deit('learned', granularities=(1, 2))
                    .state_dict()
                    .items()
                    if not key.endswith('.sides')  # of before they said so
                },
                r'blocks\.0\.router\.gate\.weight \(2, 48\) in place of '
                r'\(3, 48\).*set the granularities of its training, or '
                'another routing',
            ),
            (
                lambda: deit('learned'),
                lambda: from_ours(
                    deit('learned', granularities=(1, 2, 8)).state_dict(),
                    layout_of('vtpack', 'ViT'),
                )[0],
                r'choose among the granularities \(1, 2, 8\) \(blocks\.0\.'
                r'router\.sides\).*\(1, 2, 4\); set granularities='
                r'\(1, 2, 8\), or another routing',
            ),
            (
                lambda: deit('learned'),
                lambda: {
                    key: value
                    for key, value in deit('learned').state_dict().items()
                    if key != 'blocks.1.router.gate.bias'
                },
                r'lacks 1 of its entries \(blocks\.1\.router\.gate\.bias',
            ),
            (
                lambda: deit('variance'),
                lambda: {
                    key: value
                    for key, value in deit('variance').state_dict().items()
                    if key != 'blocks.1.router.history'
                },
                r'lacks 1 of its entries \(blocks\.1\.router\.history',
            ),
            (
                pvt,
                lambda: {
                    key: value
                    for key, value in pvt().state_dict().items()
                    if key != 'patch_embed1.proj.weight'
                },
                r'lacks 1 of its entries \(patch_embed1\.proj\.weight.*use '
                'weights of this architecture',
            ),
            (
                deit,
                lambda: (
                    {'blocks.7.router.gate.bias': torch.zeros(3)}
                    | deit().state_dict()
                ),
                r'holds 1 unknown \(blocks\.7\.router',
            ),
            (
                deit,
                lambda: dinov2(patch_size=8, ffn_type='origin').state_dict(),
                r'holds 7 unknown \(register_tokens, blocks\.0\.ls1\.gamma.*'
                r'\); set layer_scale_init_value=1e-05, '
                r'num_register_tokens=2, patch_size=8$',
            ),
            (
                lambda: DGEDeiT('tiny', routing='finest'),
                lambda: DGEViT(
                    'dinov2-small', routing='finest', pretrain_img_size=28
                ).state_dict(),
                r"embed_dims=384: set arch='dinov2-small', "
                r'layer_scale_init_value=1e-05, patch_size=14$',
            ),
            (
                lambda: DGEDeiT('small', routing='finest'),
                lambda: DGEViT(
                    'dinov2-small', routing='finest', pretrain_img_size=28
                ).state_dict(),
                r'\); set layer_scale_init_value=1e-05, patch_size=14, as '
                r"arch='dinov2-small' has it$",
            ),
            (
                dinov2,
                lambda: deit().state_dict(),
                r"\); set layer_scale_init_value=0.0, ffn_type='origin', "
                'num_register_tokens=0$',
            ),
            (
                dinov2,
                lambda: {  # as DINOv3
                    **without(dinov2().state_dict(), 'pos_embed'),
                    'rope_embed.periods': torch.zeros(4),
                },
                'lacks 1 of its entries .*another kind of transformer',
            ),
            *(
                (
                    dynamic_swin,
                    lambda half=half: {
                        key: value
                        for key, value in dynamic_swin().state_dict().items()
                        if half not in key
                    },
                    rf'lacks {num} of its entries \([\w.]*{half}',
                )
                for half, num in (
                    ('score_predictor.1.in_conv', 4),
                    ('score_predictor.0.out_conv.2', 2),
                    ('.fast_path.norm', 4),
                )
            ),
            (
                pvt,
                lambda: nn.BatchNorm2d(3).state_dict(),
                'holds no weights for the backbone DGEPVT but weight, bias, '
                r'running_mean, \.\.\.; the layouts known are vtpack PVT',
            ),
            (
                pvt,
                dict,
                'holds nothing for the backbone DGEPVT; the weights of a '
                'backbone alone go into its init_cfg',
            ),
        ],
    )
    def test_of_a_backbone(self, build, state, message):
        model = build()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UserError, match=message) as info:
            model.load_state_dict(state(), strict=False)
        assert '\n' not in str(info.value)
        assert isinstance(info.value, ValueError)
        same(model.state_dict(), before)

    def test_a_backbone_alone_is_no_detector(self, file):
        """MMEngine would warn, and train from random weights."""
        model = Detector(deit())
        with pytest.raises(UserError, match='go into its init_cfg'):
            load_checkpoint(model, file(deit().state_dict()))

    def test_pvt_v2(self, file):
        from mmdet.models.backbones import PyramidVisionTransformerV2

        host = PyramidVisionTransformerV2(
            embed_dims=32, num_layers=[2, 2, 2, 2]
        )
        with pytest.raises(UserError, match=r'a PVTv2 \(mmdet layout\)'):
            pretrained(pvt, file(host.state_dict()))

    @pytest.mark.parametrize('case', [hostile.code, hostile.code_by_getattr])
    def test_init_cfg_runs_no_code_whoever_trains(self, case, tmp_path):
        path, marker = tmp_path / 'a.pth', tmp_path / 'marker'
        case(path, marker)
        with pytest.raises(UserError, match='is refused'):
            pretrained(deit, str(path))
        assert not marker.exists()

    def test_init_cfg_looks_before_mmengine_does(self, file):
        for content, kwargs, message in (
            ([1, 2], {}, 'one object of type list'),
            (
                deit().state_dict(),
                dict(prefix='backbone.'),
                r"holds nothing below 'backbone\.' but a dict with the keys: "
                r'cls_token.*leave out the prefix of init_cfg',
            ),
        ):
            with pytest.raises(UserError, match=message):
                pretrained(deit, file(content), **kwargs)
        with pytest.raises(UserError, match='not found'):
            pretrained(deit, '/nowhere.pth')


class TestChannels:
    """Weights for images of other channels, as the hosts take them."""

    @pytest.mark.parametrize('build', POSED.values(), ids=POSED)
    @pytest.mark.parametrize('channels', [1, 4, 6])
    @pytest.mark.parametrize('whole', [False, True])
    def test_all_but_the_stem_is_taken(
        self, build, channels, whole, file, log
    ):
        source = shaken(build())
        model = build('variance', in_channels=channels)
        before = copy.deepcopy(model.state_dict())
        if whole:
            load_checkpoint(
                Detector(model), file(Detector(source).state_dict())
            )
        else:
            model.load_state_dict(source.state_dict())  # strict
        after = model.state_dict()
        (stem,) = [
            key
            for key, value in source.state_dict().items()
            if not value.equal(after[key])
        ]
        assert stem.startswith('patch_embed') and stem.endswith('.weight')
        assert after[stem].equal(before[stem])
        model.eval()(torch.rand(1, channels, 64, 64))
        (warning,) = [r for r in log.records if r.levelname == 'WARNING']
        message = warning.getMessage()
        assert stem in message and f'in_channels={channels}' in message
        assert f'initial value, of other channels: {stem}' in log.text

    def test_from_more_channels_to_three(self, file, log):
        path = file(shaken(pvt(in_channels=5)).state_dict())
        pretrained(pvt, path).eval()(torch.rand(1, 3, 64, 64))
        assert 'patch_embed1.proj.weight stays as it is' in log.text

    def test_another_patch_is_no_other_channel(self):
        state = deit(patch_size=8, in_channels=4).state_dict()
        with pytest.raises(UserError, match=r'\(48, 4, 8, 8\) in place of'):
            deit().load_state_dict(state)


class TestRectangles:
    """``pretrain_img_size`` tells the grid, which no file does."""

    @pytest.mark.parametrize('size', [(32, 128), (128, 32), (64, 32)])
    def test_mmpretrains(self, size, log):
        backbones = pytest.importorskip('mmpretrain.models.backbones')
        host = backbones.VisionTransformer(
            DEIT, img_size=size, patch_size=4, out_type='featmap'
        )
        model = deit(pretrain_img_size=size, patch_size=4)
        model.load_state_dict(shaken(host).state_dict())
        outputs_agree(model, host, size)
        outputs_agree(model, host, (64, 96))
        grid = f'{size[0] // 4}x{size[1] // 4}'
        assert f'its positions were taken for {grid}\n' in log.text

    @pytest.mark.parametrize('build', POSED.values(), ids=POSED)
    @pytest.mark.parametrize('size', [(32, 128), (64, 96), [96, 64]])
    def test_our_own(self, build, size, log):
        source = shaken(build(pretrain_img_size=size))
        model = build(pretrain_img_size=size)
        model.load_state_dict(source.state_dict())
        same(model.state_dict(), source.state_dict())
        outputs_agree(model, source, (64, 64))
        assert ' from ' not in log.text.partition('resized: ')[2]

    @pytest.mark.parametrize('build', POSED.values(), ids=POSED)
    def test_a_square_becomes_a_rectangle(self, build, log):
        source = shaken(build(pretrain_img_size=96))
        model = build(pretrain_img_size=(64, 128))
        model.load_state_dict(source.state_dict())
        outputs_agree(model, source, (64, 128))
        assert 'resized: pos_embed' in log.text

    @pytest.mark.parametrize(
        'build, size', [(pvt, (64, 96)), (pvt, 64), (deit, 64), (deit, 96)]
    )
    def test_a_grid_that_is_not_told(self, build, size):
        state = build(pretrain_img_size=(32, 96)).state_dict()
        model = build(pretrain_img_size=size)
        before = copy.deepcopy(model.state_dict())
        message = 'are no square; set pretrain_img_size='
        with pytest.raises(UserError, match=message):
            model.load_state_dict(state)
        same(model.state_dict(), before)

    def test_as_many_rows_of_other_tokens(self):
        """Two tokens and 3 x 5 positions, or one token and 4 x 4."""
        source = deit(distilled=True, pretrain_img_size=(48, 80))
        model = deit()
        assert model.pos_embed.shape == source.pos_embed.shape
        with pytest.raises(UserError, match='15 positions are no square'):
            model.load_state_dict(source.state_dict())
        deit(pretrain_img_size=(48, 80)).load_state_dict(source.state_dict())

    @pytest.mark.parametrize('size', ['224', (64,), (64, 8), (64.0, 64)])
    @pytest.mark.parametrize('build', POSED.values(), ids=POSED)
    def test_what_is_no_size(self, build, size):
        with pytest.raises(ValueError, match='pretrain_img_size.* but got'):
            build(pretrain_img_size=size)


class TestMMSeg:
    """Its ViT, alone and as the backbone of a segmentor."""

    @pytest.mark.parametrize('whole', [False, True])
    @pytest.mark.parametrize(
        'final_norm, patch_bias, qkv_bias',
        [(False, False, True), (True, True, True), (True, False, False)],
    )
    def test_outputs(self, whole, final_norm, patch_bias, qkv_bias, file, log):
        backbones = pytest.importorskip('mmseg.models.backbones')
        host = backbones.VisionTransformer(
            img_size=(64, 64),
            embed_dims=DEIT['embed_dims'],
            num_layers=DEIT['num_layers'],
            num_heads=DEIT['num_heads'],
            mlp_ratio=2,
            norm_cfg=dict(type='LN', eps=1e-6),
            final_norm=final_norm,
            patch_bias=patch_bias,
            qkv_bias=qkv_bias,
        )
        shaken(host)
        state = (Detector(host) if whole else host).state_dict()
        model = pretrained(
            deit, file({'state_dict': state}), final_norm=final_norm
        )
        outputs_agree(model, host)
        if patch_bias:  # and the other way, to each name
            theirs, _ = from_ours(
                model.state_dict(), layout_of('mmseg', 'ViT')
            )
            host.load_state_dict(theirs)
        zeros = (0 if patch_bias else 1) + (0 if qkv_bias else 9)
        assert (f'{zeros} set to 0, biases' in log.text) == (zeros > 0)
        assert 'mmseg ViT layout' in log.text

    def test_a_norm_that_it_lacks(self):
        state = deit(final_norm=False).state_dict()
        with pytest.raises(UserError, match='set final_norm=False'):
            deit().load_state_dict(state)

    def test_no_advice_that_this_backbone_does_not_take(self):
        state = without(deit().state_dict(), 'cls_token')
        with pytest.raises(UserError) as info:
            deit().load_state_dict(state)
        assert 'with_cls_token' not in str(info.value)

    def test_a_second_token_has_no_place(self):
        state = shaken(deit(distilled=True)).state_dict()
        theirs, dropped = from_ours(state, layout_of('mmseg', 'ViT'))
        assert dropped == ['dist_token']
        rows = [0, *range(2, 18)]
        assert theirs['pos_embed'].equal(state['pos_embed'][:, rows])


class TestExtras:
    """What files hold besides a backbone."""

    @pytest.mark.parametrize(
        'extras, reason',
        [
            (
                ['pre_logits.fc.weight', 'pre_logits.fc.bias'],
                'the classification head',
            ),
            (
                ['fc_norm.weight', 'head_drop.x', 'attn_pool.q.weight'],
                'the classification head',
            ),
            (
                [
                    'mask_token',
                    'decoder_pos_embed',
                    'decoder_embed.weight',
                    'decoder_blocks.0.norm1.weight',
                    'decoder_blocks.0.attn.qkv.weight',
                    'decoder_norm.weight',
                    'decoder_pred.bias',
                ],
                "its pretraining's decoder and mask",
            ),
        ],
    )
    @pytest.mark.parametrize('name', ['official', 'mmpretrain', 'mmseg'])
    def test_known_ones_are_dropped(self, name, extras, reason, log):
        source = shaken(deit()).state_dict()
        theirs, _ = from_ours(source, layout_of(name, 'ViT'))
        theirs.update({key: torch.zeros(3) for key in extras})
        model = deit()
        model.load_state_dict(theirs)  # strict
        same(model.state_dict(), source)
        assert f' dropped, {reason}: {extras[0]}' in log.text

    def test_the_norm_of_the_mean_token(self, file, log):
        backbones = pytest.importorskip('mmpretrain.models.backbones')
        host = backbones.VisionTransformer(
            DEIT, img_size=64, out_type='avg_featmap'
        )
        pretrained(deit, file(host.state_dict()))
        assert '2 dropped, the classification head: fc_norm' in log.text

    def test_unknown_ones_as_the_hosts_do(self, file, log):
        source = shaken(deit()).state_dict()
        state = {**source, 'projector.0.weight': torch.zeros(3)}
        with pytest.raises(RuntimeError, match='projector.0.weight'):
            deit().load_state_dict(state)
        same(pretrained(deit, file(state)).state_dict(), source)
        assert 'unexpected key in source state_dict: projector' in log.text

    @pytest.mark.parametrize(
        'key',
        [
            'norm_pre.weight',
            'pre_ln.weight',
            'reg_token',
            'blocks.0.ls1.gamma',
            'blocks.1.attn.q_norm.weight',
            'patch_embed.norm.weight',
        ],
    )
    def test_parts_without_which_features_are_wrong(self, key, file):
        path = file({**deit().state_dict(), key: torch.zeros(48)})
        with pytest.raises(UserError, match=rf'unknown \({key}\)'):
            pretrained(deit, path)


def weights(family, routing='finest', **kwargs):
    """Entries of a small backbone of ours, no two alike."""
    state = BUILD[family](routing, **kwargs).state_dict()
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in state.items()
    }


class TestNames:
    """There and back."""

    @pytest.mark.parametrize('layout', LAYOUTS, ids=IDS)
    def test_there_and_back(self, layout):
        dynamic = layout.name in ('vtpack', 'mmdge')
        ours = weights(layout.family, 'learned' if dynamic else 'finest')
        theirs, dropped = from_ours(ours, layout)
        assert not dropped
        assert recognise(theirs, LAYOUTS) is layout
        again = to_ours(theirs, layout)
        splits = [key for key in theirs if key.endswith('.dge.splits')]
        assert bool(splits) == (layout.name == 'vtpack')
        assert all(theirs[key].tolist() == [4, 2, 1] for key in splits)
        assert again.keys() == ours.keys()
        assert all(again[key].equal(ours[key]) for key in ours)

    def test_what_a_layout_has_no_place_for(self):
        ours = weights(
            'PVT',
            dict(type='RandomRouter'),
            with_cls_token=True,
            out_type='cls_token',
        )
        ours['block1.0.router.gate.weight'] = torch.zeros(3, 16)
        ours['head.weight'] = torch.zeros(10, 64)
        theirs, dropped = from_ours(ours, layout_of('mmdet', 'PVT'))
        assert set(dropped) == {
            *('cls_token', 'norm.weight', 'norm.bias', 'head.weight'),
            'block1.0.router.gate.weight',
        }
        # The cls token's position goes with it.
        assert theirs['layers.3.1.0.pos_embed'].equal(
            ours['pos_embed4'][:, 1:]
        )
        assert all(re.match(r'layers\.\d\.[01]\.', key) for key in theirs)
        # Routers that the official code does not have.
        _, dropped = from_ours(
            weights('ViT', 'variance'), layout_of('vtpack', 'ViT')
        )
        assert len(dropped) == 12 and all('.router.' in key for key in dropped)

    @pytest.mark.parametrize('sides', [(1, 4), (1, 2, 8), (2, 4)])
    def test_granularities_of_vtpack(self, sides):
        ours = weights('ViT', 'learned', granularities=sides)
        theirs, _ = from_ours(ours, layout_of('vtpack', 'ViT'))
        expected = [sides[-1] // side for side in sides]
        assert theirs['blocks.1.dge.splits'].tolist() == expected

    def test_the_arguments_stay_as_they_are(self):
        ours = weights('PVT', with_cls_token=True)
        before = dict(ours)
        theirs, _ = from_ours(ours, layout_of('mmdet', 'PVT'))
        to_ours(theirs, layout_of('mmdet', 'PVT'))
        assert ours.keys() == before.keys()
        assert all(ours[key] is before[key] for key in before)

    def test_unwrap_names_the_rest(self):
        state = {'module.backbone.a': 1, 'module.head.b': 2}
        assert unwrap({'state_dict': state}) == ({'a': 1}, ['head.b'])
        assert unwrap({'a': 1, 'epoch': 2}) == ({'a': 1, 'epoch': 2}, [])

    @pytest.mark.parametrize(
        'names',
        [
            [],
            ['conv1.weight', 'layer1.0.conv1.weight'],
            ['layers.0.blocks.0.attn.logit_scale'],  # Swin v2
            ['layers.0.0.projection.weight', 'layers.0.1.0.attn.sr.weight'],
        ],
    )
    def test_others_are_not_recognised(self, names):
        assert recognise(names, LAYOUTS) is None
