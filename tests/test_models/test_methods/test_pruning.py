"""DynamicViT: against the official code, and what maps add to it.

What every backbone promises is in ``test_contract.py``.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdge.models import DynamicLVViT, DynamicViT
from mmdge.models.architectures import PVT
from mmdge.models.methods import Pruning, pruning
from mmdge.models.routing import keep_predictor
from mmdge.utils.counting import flop_counter
from tests.small import pictures

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)


def build(**kwargs):
    """A small one whose predictors differ from token to token."""
    defaults = dict(
        pruning_loc=(1, 2, 3),
        patch_size=8,
        pretrain_img_size=64,
        drop_path_rate=0.0,
    )
    model = DynamicViT(ARCH, **{**defaults, **kwargs})
    for name, parameter in model.named_parameters():
        if 'norm' not in name:
            parameter.data.mul_(4)
    return model.eval()


class TestAgainstTheOfficialCode:
    """The figures of the official code, decisions fixed as they were."""

    @pytest.fixture(params=['deit', 'lvvit'])
    def golden(self, test_data, request):
        name = f'dynamicvit_{request.param}.npz'
        return np.load(test_data / 'golden' / name)

    @pytest.fixture
    def official(self, golden):
        state = {
            key.removeprefix('w/'): torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('w/')
        }
        family, dims, depth, heads, ratio = DynamicViT, 40, 12, 4, 4
        if 'aux_head.weight' in state:
            family, dims, depth, heads, ratio = DynamicLVViT, 24, 16, 3, 3
        arch = dict(
            embed_dims=dims,
            num_layers=depth,
            num_heads=heads,
            feedforward_channels=ratio * dims,
        )
        model = family(arch, out_type='cls_token', drop_path_rate=0.0)
        model.load_state_dict(state)
        for name in ('head', 'aux_head'):  # of LV-ViT's patches
            if f'{name}.bias' in state:
                head = nn.Linear(dims, 10)
                head.load_state_dict(
                    {k: state[f'{name}.{k}'] for k in ('weight', 'bias')}
                )
                model.add_module(name, head)
        return model.eval()

    def run(self, model, x):
        """Logits; all patch tokens after the final norm, or their logits."""
        tokens = []
        handle = model.norm.register_forward_hook(
            lambda module, args, output: tokens.append(output[:, 1:])
        )
        (feature,) = model(x)
        handle.remove()
        (tokens,) = tokens
        if hasattr(model, 'aux_head'):
            tokens = model.aux_head(tokens)
        return model.head(feature), tokens

    def test_evaluation(self, official, golden):
        logits, tokens = self.run(official, torch.tensor(golden['x']))
        for stage, decided in enumerate(official.cost.maps):
            kept = decided.share.flatten(1)
            places = torch.tensor(golden[f'eval/keep_abs{stage}']).long()
            expected = torch.zeros_like(kept).scatter(1, places, 1.0)
            assert kept.equal(expected)
        # In the order of scores, the cls token first.
        expected = torch.tensor(golden['eval/norm_tokens'])[:, 1:]
        if hasattr(official, 'aux_head'):
            expected = torch.tensor(golden['eval/aux_logits'])
        ours = tokens.gather(1, places[..., None].expand_as(expected))
        torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)
        if hasattr(official, 'aux_head'):
            logits = logits + 0.5 * ours.amax(1)
        expected = torch.tensor(golden['eval/logits'])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    def test_flops(self, official, golden):
        official(torch.tensor(golden['x']))
        head = official.head.weight.numel()
        kept = [int(official.cost.maps[-1].share[0].sum()), 14 * 14]
        for ours, key, num in zip(
            *(('dynamic', 'dense'), ('macs', 'teacher_macs'), kept),
            strict=True,
        ):
            flops = getattr(official.cost, ours) + head
            if hasattr(official, 'aux_head'):
                flops = flops + num * head
            assert flops.tolist() == [golden[f'eval/{key}_per_image']] * 2

    def test_the_dense_twin_is_the_teacher(self, official, golden):
        with official.as_dense_twin():
            logits, tokens = self.run(official, torch.tensor(golden['x']))
        for ours, key in ((logits, 'cls'), (tokens, 'tokens')):
            expected = torch.tensor(golden[f'teacher/{key}'])
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize('mode', ['train0', 'trainN'])
    def test_training(self, official, golden, mode, monkeypatch):
        """Losses, and the gradients of all parameters that are stored.

        In double precision: some ReLUs of LV-ViT's stem see almost 0.
        """
        model, x = official.double(), torch.tensor(golden['x']).double()
        noise = [0, 0, 0]
        if mode == 'trainN':
            noise = list(torch.tensor(golden['trainN/noise']))
        monkeypatch.setattr(
            keep_predictor,
            'add_gumbel_noise',
            lambda logits: (
                logits + torch.as_tensor(noise.pop(0)).view(-1, 2)
                if mode == 'trainN'
                else logits
            ),
        )
        with torch.no_grad(), model.as_dense_twin():
            taught = self.run(model, x)
        logits, tokens = self.run(model.train(), x)
        for ours, key in ((logits, 'logits'), (tokens, 'tokens')):
            expected = torch.tensor(golden[f'{mode}/{key}']).double()
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        maps = model.cost.maps
        decisions = torch.stack([m.share.flatten(1) for m in maps])
        assert (decisions == torch.tensor(golden[f'{mode}/decisions'])).all()

        log_probs = logits.log_softmax(-1)
        loss = -(torch.tensor(golden['y']) * log_probs).sum(-1).mean()
        for m in maps:
            loss = loss + 2 / 3 * (m.mean - m.target).square().mean()
        kept = decisions[-1] > 0
        pairs = [(logits, taught[0]), (tokens[kept], taught[1][kept])]
        if not hasattr(model, 'aux_head'):
            loss = loss + 0.5 * F.mse_loss(*pairs.pop())
        for ours, theirs in pairs:
            loss = loss + 0.5 * F.kl_div(
                ours.log_softmax(-1),
                theirs.log_softmax(-1),
                log_target=True,
                reduction='batchmean',
            )
        assert loss.item() == pytest.approx(
            golden[f'{mode}/loss'].item(), abs=1e-5
        )
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        stored = [k for k in golden.files if k.startswith(f'{mode}/grad/')]
        assert stored
        for key in golden.files:  # what BatchNorm remembers
            if key.startswith(f'{mode}/after/'):
                ours = model.get_buffer(key.removeprefix(f'{mode}/after/'))
                expected = torch.tensor(golden[key]).double()
                torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        for key in stored:
            name = key.removeprefix(f'{mode}/grad/')
            if '.attn.qkv.' in name:
                parts = [name.replace('qkv', part) for part in ('q', 'kv')]
                grad = torch.cat([grads[part] for part in parts])
            else:
                grad = grads[name]
            expected = torch.tensor(golden[key]).double()
            torch.testing.assert_close(
                grad,
                expected,
                rtol=0,
                atol=1e-4 * expected.abs().max().item(),
                msg=lambda text, name=name: f'{name}: {text}',
            )

    def test_parts(self, official, golden):
        """On small inputs, where the ``eps`` of norms show."""
        unit = {
            key.removeprefix('unit/'): torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('unit/')
        }
        x, policy = unit['predictor/x'], unit['predictor/policy']
        predictor = official.score_predictor[0]
        rows = x.flatten(0, 1), [x.shape[1]] * len(x), policy.flatten()
        block = official.blocks[0]
        for ours, key in (
            (block.update_all(unit['block/x'], (16, 1)), 'block'),
            (predictor(*rows).view_as(unit['predictor/out']), 'predictor'),
        ):
            expected = unit[f'{key}/out']
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)

    def test_masked_softmax(self, golden):
        """With large logits, where ``eps`` and the maximum show."""
        unit = {
            key.removeprefix('unit/masked_softmax/'): torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('unit/masked_softmax/')
        }
        logits, policy = (unit[k].requires_grad_() for k in ('attn', 'policy'))
        # What the values of unit vectors add up to is the weights.
        batch, heads, num, _ = logits.shape
        q = logits.transpose(1, 2).flatten(0, 1) * num**0.5  # (B * T, h, T)
        eye = torch.eye(num)[:, None].repeat(batch, heads, 1)
        lengths = [num] * batch
        weights = pruning.masked_attention(
            q, eye, eye, lengths, lengths, policy.squeeze(-1)
        )
        weights = weights.unflatten(0, (batch, num)).transpose(1, 2)
        torch.testing.assert_close(weights, unit['out'], atol=1e-6, rtol=0)
        (unit['probe'] * weights).sum().backward()
        for ours, key in ((logits, 'grad_attn'), (policy, 'grad_policy')):
            scale = unit[key].abs().max().item()
            torch.testing.assert_close(
                ours.grad, unit[key], atol=1e-4 * scale, rtol=0
            )


@pytest.mark.parametrize(
    'family, arch, ratio, gflops, kept',
    [
        (DynamicViT, 'small', 0.7, 2.981, [137, 96, 67]),
        (DynamicLVViT, 'small', 0.7, 4.650, [137, 96, 67]),
        (DynamicLVViT, 'small', 0.5, 3.790, [98, 49, 24]),
        (DynamicLVViT, 'medium', 0.7, 8.593, [137, 96, 67]),
    ],
)
def test_full_size_flops_are_the_papers(family, arch, ratio, gflops, kept):
    """README: 2.9, 4.6, 3.7 and 8.5; what the official eval model runs.

    With its heads: of the cls token, and LV-ViT's of the patches that stay.
    """
    with torch.device('meta'):
        model = family(arch, ratio, out_type='cls_token').eval()
    model = model.to_empty(device='cpu')
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.normal_(std=0.02).abs_()
        with flop_counter() as counter:
            model(torch.rand(1, 3, 224, 224))
    counted = counter.get_total_flops() / 2
    assert model.cost.dynamic.item() == counted
    heads = 1 + kept[-1] if family is DynamicLVViT else 1
    heads *= model.arch['embed_dims'] * 1000
    assert (counted + heads) / 1e9 == pytest.approx(gflops, abs=5e-4)
    assert [int(m.share.sum()) for m in model.cost.maps] == kept


class TestDecisions:
    def test_the_best_of_each_image_are_kept(self):
        scores = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.0, 0.0, 0.0, 9.0]])
        allowed = torch.tensor([[True, True, True, False], [True] * 4])
        kept = keep_predictor.top(scores, torch.tensor([2, 2]), allowed)
        assert kept.tolist() == [
            [True, False, True, False],
            [True, False, False, True],  # ties: the first
        ]

    @pytest.mark.parametrize('routing', ['learned', 'random', 'uniform'])
    def test_as_many_are_kept_as_asked(self, routing):
        model = build(routing=routing, keep_ratio=[0.8, 0.5, 0.25])
        model(torch.rand(2, 3, 64, 64) + 0.1)
        kept = [m.share.sum((1, 2)).tolist() for m in model.cost.maps]
        assert kept == [[51, 51], [32, 32], [16, 16]]
        assert not any(r.adaptive for r in model.routers)

    @pytest.mark.parametrize('side', [10, 20, 50])
    def test_the_keep_ratio_is_met_to_the_token(self, side):
        """As ``int(n * ratio)``, whatever the number."""
        model = build(routing='uniform')
        model(torch.rand(1, 3, 8 * side, 8 * side) + 0.1)
        kept = [int(m.share.sum()) for m in model.cost.maps]
        assert kept == [int(side**2 * 0.7**s) for s in (1, 2, 3)]

    def test_what_is_dropped_stays_so(self):
        model = build()
        model(torch.rand(2, 3, 64, 64))
        first, second, third = (m.share for m in model.cost.maps)
        assert (first >= second).all() and (second >= third).all()

    def test_a_price_is_per_image(self):
        x = pictures(3, 64, 64)
        model = build(amount='price', keep_ratio=1.0)
        assert all(router.adaptive for router in model.routers)
        ratios = []
        for price in (-99.0, 0.0, 99.0):
            for router in model.routers:
                router.price = price
            model(x)
            ratios.append(model.cost.ratio)
        assert ratios[0][0] >= 1 > ratios[2].max()  # predictors are on top
        assert (ratios[0] >= ratios[1]).all()
        assert (ratios[1] >= ratios[2]).all()
        assert ratios[1].std() > 0

    def test_padding_is_dropped_and_does_not_count(self):
        x = torch.rand(2, 3, 64, 64) + 0.1
        x[1, :, :, 32:] = 0
        for training in (False, True):
            model = build(keep_ratio=0.5).train(training)
            model(x)
            first = model.cost.maps[0]
            assert not first.share[1, :, 4:].any()
            if not training:
                assert first.share.sum((1, 2)).tolist() == [32, 16]
                assert first.mean.tolist() == [0.5, 0.5]

    def test_an_image_may_lose_all_its_tokens(self):
        model = build(amount='price', price=999.0)
        (out,) = model(torch.rand(2, 3, 64, 64))
        assert out.isfinite().all()
        model.train()
        for router in model.routers:
            nn.init.constant_(router.out_conv[4].bias, 0.0)
            router.out_conv[4].bias.data[1] = 999.0  # drop
        (out,) = model(torch.rand(2, 3, 64, 64))
        out.sum().backward()
        assert all(
            p.grad is None or p.grad.isfinite().all()
            for p in model.parameters()
        )


class TestMaps:
    def test_dropped_tokens_keep_their_last_features(self):
        model = build(final_norm=False, out_indices=(2, 3))
        before, after = model(torch.rand(2, 3, 64, 64))
        dropped = model.cost.maps[2].share == 0
        assert (after == before).all(1).equal(dropped)

    def test_dropped_tokens_may_be_taken_up_again(self):
        torch.manual_seed(3)
        model = build(reactivate=True, keep_ratio=[0.5, 0.5, 0.5])
        model(torch.rand(2, 3, 64, 64))
        first, second, _ = (m.share for m in model.cost.maps)
        assert (second > first).any()
        assert second.sum() == first.sum()
        x = torch.rand(2, 3, 64, 64)
        x[1, :, :, 32:] = 0
        with torch.no_grad(), flop_counter() as counter:
            model(x)
        assert counter.get_total_flops() / 2 == model.cost.dynamic.sum()

    @pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
    @pytest.mark.parametrize('reactivate', [False, True])
    def test_masked_training_equals_packed_rows(
        self, reactivate, out_type, monkeypatch
    ):
        """Under the same decisions, maps and all."""
        model = build(
            reactivate=reactivate,
            amount='price',
            out_indices=(0, 1, 3),
            out_type=out_type,
        )
        monkeypatch.setattr(keep_predictor, 'add_gumbel_noise', lambda x: x)
        for parameter in model.parameters():  # or what is dropped outshines
            parameter.data /= 2 if parameter.dim() > 1 else 1  # all kept keys
        x = pictures(3, 64, 56)
        packed, cost = model(x), model.cost
        masked = model.train()(x)
        for ours, theirs in zip(masked, packed, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(model.cost.dynamic, cost.dynamic)


def test_a_pyramid_cannot_drop_tokens():
    class PrunedPVT(Pruning, PVT):
        """Whose later stages and keys are of reduced maps."""

    with pytest.raises(ValueError, match='PrunedPVT reduces their map'):
        PrunedPVT('tiny').add_predictors(
            0.7, (0,), 'learned', 'topk', 0.0, False, True
        )


@pytest.mark.parametrize(
    'kwargs, said',
    [
        (dict(keep_ratio=0), 'keep_ratio must be one number in'),
        (dict(keep_ratio=[0.5]), 'for each of pruning_loc'),
        (dict(pruning_loc=(2, 1)), 'must be ascending'),
        (dict(pruning_loc=(9,)), 'among 0 to 3'),
        (dict(amount='all'), "'topk' or 'price'"),
        (dict(routing='variance'), "but got 'variance'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, said):
    with pytest.raises(ValueError, match=said):
        build(**kwargs)
