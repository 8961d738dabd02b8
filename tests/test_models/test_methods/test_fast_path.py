"""DSS: against the official code, and what a price and padding do.

What every backbone promises is in ``test_contract.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdge.models import DynamicConvNeXt, DynamicSwin
from mmdge.models.methods.fast_path import STAGE
from mmdge.models.routing import keep_predictor
from mmdge.models.weights import from_ours
from mmdge.utils import UserError
from mmdge.utils.counting import flop_counter
from tests.small import (
    CONVNEXT,
    SWIN,
    dynamic_convnext,
    dynamic_swin,
    pictures,
)


class Official(NamedTuple):
    """A model with the official weights and what its head needs."""

    model: nn.Module
    head: nn.Linear
    golden: np.lib.npyio.NpzFile

    def tensor(self, key):
        return torch.tensor(self.golden[key])

    def run(self):
        """Logits, and the last map after its norm, ``(B, N, C)``."""
        seen, norm = [], self.model.norm3
        handle = norm.register_forward_hook(
            lambda module, args, out: seen.append((args[0], out))
        )
        self.model(self.tensor('x'))
        handle.remove()
        ((before, after),) = (
            [x.reshape(len(x), -1, x.shape[-1]) for x in pair] for pair in seen
        )
        if isinstance(self.model, DynamicConvNeXt):
            return self.head(norm(before.mean(1))), after
        return self.head(after.mean(1)), after


@pytest.fixture(params=['swin', 'convnext'])
def official(request, test_data):
    golden = np.load(test_data / 'golden' / f'dynamic{request.param}.npz')
    state = {
        key.removeprefix('w/'): torch.tensor(golden[key])
        for key in golden.files
        if key.startswith('w/')
    }
    kwargs = dict(out_indices=(3,), drop_path_rate=0.0)
    if request.param == 'swin':
        arch = dict(embed_dims=8, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8))
        model = DynamicSwin(arch, pad_small_map=False, **kwargs)
    else:
        arch = dict(channels=(8, 16, 32, 64), depths=(2, 1, 6, 2))
        model = DynamicConvNeXt(arch, **kwargs)
    model.load_state_dict(state)
    head = nn.Linear(64, 10)
    head.load_state_dict({k: state[f'head.{k}'] for k in ('weight', 'bias')})
    return Official(model.eval(), head, golden)


def kept(decided):
    """From the shares of compute, with a fast path of an eighth."""
    return (decided.share.flatten(1) - 1 / 8) / (1 - 1 / 8)


class TestAgainstTheOfficialCode:
    def test_evaluation(self, official):
        logits, tokens = official.run()
        torch.testing.assert_close(
            logits, official.tensor('eval/logits'), atol=1e-5, rtol=0
        )
        expected = official.tensor('eval/norm_out')
        if expected.dim() == 3:  # ConvNeXt's is the mean's norm
            torch.testing.assert_close(tokens, expected, atol=5e-5, rtol=0)
        for number, decided in enumerate(official.model.cost.maps):
            slow = official.tensor(f'eval/slow_idx{number}').long()
            expected = torch.zeros_like(kept(decided)).scatter(1, slow, 1.0)
            torch.testing.assert_close(kept(decided), expected)

    def test_flops(self, official):
        official.model(official.tensor('x'))
        head = 64 * 10
        for ours, key in (('dynamic', 'macs'), ('dense', 'teacher_macs')):
            flops = getattr(official.model.cost, ours) + head
            expected = official.golden[f'eval/{key}_per_image'].item()
            assert flops.tolist() == [expected] * 3

    def test_the_dense_twin_is_the_teacher(self, official):
        with official.model.as_dense_twin():
            logits, tokens = official.run()
        for ours, key in ((logits, 'cls'), (tokens, 'featmap')):
            expected = official.tensor(f'teacher/{key}').view_as(ours)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize('mode', ['train0', 'trainN'])
    def test_training(self, official, mode, monkeypatch):
        """Losses, and the gradients of all parameters that are stored."""
        model, noise = official.model, [torch.tensor(0.0)] * 3
        if mode == 'trainN':
            noise = official.tensor('trainN/noise')
            if noise.dim() == 5:  # (3, B, 2, H, W) -> (3, B, N, 2)
                noise = noise.flatten(3).transpose(2, 3)
            noise = [part.reshape(-1, 2) for part in noise]
        monkeypatch.setattr(
            keep_predictor,
            'add_gumbel_noise',
            lambda logits: logits + noise.pop(0),
        )
        with torch.no_grad(), model.as_dense_twin():
            taught = official.run()
        model.train()
        logits, tokens = official.run()
        for ours, key in ((logits, 'logits'), (tokens, 'featmap')):
            expected = official.tensor(f'{mode}/{key}').view_as(ours)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        maps = model.cost.maps
        decisions = torch.stack([kept(decided) for decided in maps])
        expected = official.tensor(f'{mode}/decisions').view_as(decisions)
        torch.testing.assert_close(decisions, expected)

        log_probs = logits.log_softmax(-1)
        loss = -(official.tensor('y') * log_probs).sum(-1).mean()
        for decided in maps:
            difference = (decided.mean - decided.target) / (1 - 1 / 8)
            loss = loss + 10 / 3 * difference.square().mean()
        loss = loss + 0.5 * F.mse_loss(tokens, taught[1])
        loss = loss + 0.5 * F.kl_div(
            log_probs,
            taught[0].log_softmax(-1),
            log_target=True,
            reduction='batchmean',
        )
        assert loss.item() == pytest.approx(
            official.golden[f'{mode}/loss'].item(), abs=1e-5
        )
        loss.backward()
        (layout,) = (f for f in model.layouts if f.name == 'official')
        grads, _ = from_ours(
            {n: p.grad for n, p in model.named_parameters()}, layout
        )
        grads |= {
            f'head.{n}': p.grad for n, p in official.head.named_parameters()
        }
        stored = [k for k in official.golden.files if f'{mode}/grad/' in k]
        assert len(stored) > 30
        for key in stored:
            name, expected = key.partition('/grad/')[2], official.tensor(key)
            torch.testing.assert_close(
                grads[name].view_as(expected),
                expected,
                rtol=0,
                atol=1e-4 * expected.abs().max().item(),
                msg=lambda text, name=name: f'{name}: {text}',
            )


@pytest.mark.parametrize(
    ('family', 'arch', 'head', 'dynamic', 'dense'),
    [
        # Of the official evaluation, head and all
        (DynamicSwin, 'tiny', 768, 4.041e9, 4.491e9),
        (DynamicConvNeXt, 'tiny', 768, 3.579e9, 4.456e9),
    ],
)
def test_full_size_flops_are_the_papers(family, arch, head, dynamic, dense):
    with torch.device('meta'):
        model = family(arch).eval()
    model = model.to_empty(device='cpu')
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        with flop_counter() as counter:
            model(torch.rand(1, 3, 224, 224))
    cost = model.cost
    assert counter.get_total_flops() / 2 == cost.dynamic.item()
    head *= 1000
    assert cost.dynamic.item() + head == pytest.approx(dynamic, abs=1e6)
    assert cost.dense.item() + head == pytest.approx(dense, abs=1e6)


@pytest.mark.parametrize(
    ('family', 'places'),
    [(DynamicSwin, (2, 4, 6)), (DynamicConvNeXt, (3, 6, 9))],
)
def test_deeper_ones_decide_where_the_papers_do(family, places):
    with torch.device('meta'):
        model = family('small')
    assert tuple(model.keep_ratios) == places
    assert family(arch_of_depth(family, 2)).keep_ratios == {1: 0.7}


def arch_of_depth(family, depth):
    arch = SWIN if family is DynamicSwin else CONVNEXT
    return {**arch, 'depths': (1, 1, depth, 1)}


@pytest.fixture(params=[dynamic_swin, dynamic_convnext])
def build(request) -> Callable:
    return request.param


class TestDecisions:
    def test_a_price_moves_what_takes_the_slow_path(self, build):
        model = build(amount='price').eval()
        ratios, x = [], pictures(2, 96, 96)
        for price in (-999.0, 0.0, 999.0):
            for router in model.routers:
                router.price = price
            model(x)
            ratios.append(model.cost.ratio)
        first, last = model.cost.maps[0], model.cost.maps[-1]
        assert (ratios[0] > ratios[1]).all() and (ratios[1] > ratios[2]).all()
        assert first.share.max() == last.share.max() == 1 / 8

    def test_padding_takes_the_fast_path_and_does_not_count(self, build):
        x = torch.rand(2, 3, 128, 128) + 0.1
        x[1, :, :, 64:] = 0
        model = build(keep_ratio=[0.5, 0.25], pruning_loc=(0, 1)).eval()
        model(x)
        first = model.cost.maps[0]
        assert (first.share[1, :, 4:] == 1 / 8).all()
        assert kept(first).sum(1).tolist() == [32, 16]

    def test_dropped_tokens_may_come_back(self, build):
        model = build(keep_ratio=[0.3, 0.6], pruning_loc=(0, 1)).eval()
        model(pictures(1, 128, 128))
        before, after = map(kept, model.cost.maps)
        assert (after > before).any()


def test_hosts_have_no_place_for_what_decides(build):
    model = build()
    (layout,) = (
        found
        for found in model.layouts
        if found.name in ('openmmlab', 'mmpretrain')
    )
    _, dropped = from_ours(model.state_dict(), layout)
    parts = 'score_predictor.', '.fast_path.'
    expected = {k for k in model.state_dict() if any(p in k for p in parts)}
    assert set(dropped) == expected and len(expected) > 20


@pytest.mark.parametrize(
    ('kwargs', 'said'),
    [
        (dict(keep_ratio=0.3), 'leaves nothing to the last of 3 predictors'),
        (dict(out_indices=(0, 1)), f'leave out the stage {STAGE}'),
        (dict(routing='error'), "must be 'learned', 'random'"),
        (dict(pruning_loc=(3, 99)), 'pruning_loc='),
    ],
)
def test_wrong_arguments_are_named(kwargs, said):
    with pytest.raises(UserError, match=said):
        DynamicSwin(**kwargs)
