"""CF-ViT: against the official code, and what exits and maps promise.

What every backbone promises is in ``test_contract.py``.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdge.calibration import find_price, ratio_at_price
from mmdge.models import CFLVViT, CFViT
from mmdge.models.routing import Grains
from mmdge.models.weights import from_ours
from mmdge.utils import UserError
from tests.small import cf_vit, deit, pictures


def soft_cross_entropy(logits, target):
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def taught(coarse, fine):
    """The coarse pass's loss."""
    return F.kl_div(
        coarse.log_softmax(-1),
        fine.detach().softmax(-1),
        reduction='batchmean',
    )


class TestAgainstTheOfficialCode:
    """The figures of the official code."""

    @pytest.fixture(params=['deit', 'lvvit'])
    def golden(self, test_data, request):
        return np.load(test_data / 'golden' / f'cfvit_{request.param}.npz')

    @pytest.fixture
    def official(self, golden):
        state = {
            key.removeprefix('w/'): torch.tensor(golden[key])
            for key in golden.files
            if key.startswith('w/')
        }
        family, dims, depth, heads, ratio = CFViT, 32, 12, 4, 4
        if 'aux_head.weight' in state:
            family, dims, depth, heads, ratio = CFLVViT, 24, 16, 3, 3
        arch = dict(
            embed_dims=dims,
            num_layers=depth,
            num_heads=heads,
            feedforward_channels=ratio * dims,
        )
        model = family(arch, num_classes=10, drop_path_rate=0.0)
        model.load_state_dict(state)
        return model.eval()

    def test_weights_go_back_to_the_official_names(self, official, golden):
        layouts = {layout.name: layout for layout in official.layouts}
        state = official.state_dict()
        assert from_ours(state, layouts['mmdge']) == (state, [])
        theirs, dropped = from_ours(state, layouts['cf-vit'])
        expected = {k[2:] for k in golden.files if k.startswith('w/')}
        assert not dropped and theirs.keys() == expected
        for name in expected:
            assert theirs[name].equal(torch.tensor(golden[f'w/{name}']))

    def assert_close(self, ours, golden, key, tolerance=1e-5):
        expected = torch.tensor(golden[key]).to(ours)
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)

    def test_the_coarse_pass_and_its_choice(self, official, golden):
        x = torch.tensor(golden['x'])
        with torch.no_grad():
            look = official.look(x)
            fine = official.fine_tokens(x, look)[:, 1:]
            reuse = official.reuse_block(look.normed[:, 1:])
        for ours, key in (
            (look.tokens, 'coarse_input_tokens'),
            (look.normed, 'coarse_norm'),
            (look.score.flatten(1), 'attn_score'),
            (reuse, 'reuse'),
            (look.logits, 'coarse_logits'),
        ):
            self.assert_close(ours, golden, f'eval/{key}', 5e-5)
        places = torch.tensor(golden['eval/important']).long()
        expected = torch.ones(len(x), 49).scatter(1, places, 0.0)
        assert look.chosen.flatten(1).equal(expected.long())
        # In the official order, behind the cls token.
        theirs = torch.tensor(golden['eval/fine_input_tokens'])[:, 1:101]
        places = torch.tensor(golden['eval/fine_index']).long()
        ours = fine.gather(1, places[..., None].expand_as(theirs))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_logits(self, official, golden):
        x = torch.tensor(golden['x'])
        for alpha, key in (
            (0.5, 'fine_logits'),
            (0.25, 'alpha0.25/fine_logits'),
            (1.0, 'alpha1.0/fine_logits'),
        ):
            official.alpha = alpha
            coarse, fine = official(x)
            self.assert_close(coarse, golden, 'eval/coarse_logits')
            self.assert_close(fine, golden, f'eval/{key}')
        if isinstance(official, CFLVViT):  # DeiT gets no positions there
            self.assert_close(fine, golden, 'eval/selection_off/fine_logits')

    @pytest.mark.parametrize('case', ['none_exit', 'some_exit'])
    def test_exits(self, official, golden, case):
        eta = golden[f'eval/early_exit/{case}/threshold'].item()
        official.exit_router.price = 1 - eta
        with torch.no_grad():
            _, logits = official(torch.tensor(golden['x']))
        self.assert_close(logits, golden, f'eval/early_exit/{case}/logits')
        left = official.cost.maps[1].share.flatten() < 1
        expected = golden[f'eval/early_exit/{case}/exited_coarse']
        assert left.tolist() == expected.tolist()

    def test_flops(self, official, golden):
        """Beside theirs, a product of the cls query with all coarse keys."""
        x = torch.tensor(golden['x'])
        dims, depth = (official.arch[k] for k in ('embed_dims', 'num_layers'))
        watched = (depth - 3) * (1 + 49) * dims
        for price, alpha, key in (
            (1.0, 0.5, 'macs_coarse'),
            (0.0, 0.5, 'macs_both'),
            (0.0, 1.0, 'macs_both_selection_off'),
        ):
            official.exit_router.price, official.alpha = price, alpha
            with torch.no_grad():
                official(x)
            expected = golden[f'eval/{key}'] + watched
            assert official.cost.dynamic.tolist() == [expected] * len(x)

    def test_training(self, official, golden):
        """Losses, and the gradients of all parameters that are stored."""
        model, x = official.double().train(), torch.tensor(golden['x'])
        x, target = x.double(), torch.tensor(golden['y']).double()
        if isinstance(model, CFLVViT):
            coarse, fine, loss = self.with_mixed_tokens(model, x, golden)
        else:
            coarse, fine = model(x)
            loss = soft_cross_entropy(fine, target)
        split = model.cost.maps[0].share.flatten(1) == 1
        places = torch.tensor(golden['train/important']).long()
        expected = torch.zeros(len(x), 49).scatter(1, places, 1.0)
        assert split.equal(expected > 0)
        for ours, key in (
            (coarse, 'coarse_logits'),
            (fine, 'fine_logits'),
            (loss, 'loss_ce'),
            (taught(coarse, fine), 'loss_kl'),
        ):
            self.assert_close(ours, golden, f'train/{key}', 4e-5)
        (loss + taught(coarse, fine)).backward()
        grads = {
            name.replace('.attn.q.', '.attn.qkv.'): p.grad
            for name, p in model.named_parameters()
        }
        grads['pos_embed_list.0'] = grads.pop('coarse_pos_embed')
        grads['pos_embed_list.1'] = grads.pop('pos_embed')
        for key in golden.files:  # what BatchNorm remembers
            if key.startswith('train/after/'):
                ours = model.get_buffer(key.removeprefix('train/after/'))
                self.assert_close(ours, golden, key)
        stored = [k for k in golden.files if k.startswith('train/grad/')]
        assert len(stored) > 100
        for key in stored:
            name = key.removeprefix('train/grad/')
            grad = grads[name]
            if '.attn.qkv.' in name:
                grad = torch.cat([grad, grads[name.replace('qkv', 'kv')]])
            expected = torch.tensor(golden[key]).double()
            if re.match(r'patch_embed\.(conv|bn)', name):
                # Below a ReLU that sees 0 but for rounding.
                assert (grad - expected).norm() < 0.02 * expected.norm()
                continue
            torch.testing.assert_close(
                grad,
                expected,
                rtol=0,
                atol=1e-4 * expected.abs().max().item(),
                msg=lambda text, name=name: f'{name}: {text}',
            )

    def with_mixed_tokens(self, model, x, golden):
        """Logits of both cls tokens; the loss with dense labels.

        The tokens inside of a box are those of another image.
        """
        boxes = [golden[f'train/box_{part}'] for part in ('coarse', 'fine')]
        passes, normed = iter(boxes), []

        def mix(module, args, output):
            tokens, size = output
            return swap(tokens, size, next(passes)), size

        def swap(tokens, size, box):
            top, left, bottom, right = (int(side) for side in box)
            grid = tokens.unflatten(1, size).clone()
            own = grid.clone()
            grid[:, top:bottom, left:right] = own.flip(0)[
                :, top:bottom, left:right
            ]
            return grid.flatten(1, 2)

        handles = [
            model.patch_embed.register_forward_hook(mix),
            model.norm.register_forward_hook(
                lambda module, args, output: normed.append(output)
            ),
        ]
        model(x)
        for handle in handles:
            handle.remove()
        chosen = (model.cost.maps[0].share < 1).long()
        rows = Grains((14, 14), (1, 2), 1).choose(chosen).unpool(normed[1])
        cls, dense = [], []
        for tokens, size, box in zip(
            (normed[0], rows), ((7, 7), (14, 14)), boxes, strict=True
        ):
            cls.append(model.head(tokens[:, 0]))
            dense.append(swap(model.aux_head(tokens[:, 1:]), size, box))
        for ours, part in zip(dense, ('coarse', 'fine'), strict=True):
            self.assert_close(ours, golden, f'train/{part}_aux', 5e-5)
        target = torch.tensor(golden['train/target']).double()
        box = boxes[1]
        inside = int((box[2] - box[0]) * (box[3] - box[1])) / 14**2
        own = target[..., 1] * (1 - inside) + target[..., 1].flip(0) * inside
        loss = soft_cross_entropy(cls[1], own)
        labels = target[..., 2:].mT.flatten(0, 1)
        loss = loss + soft_cross_entropy(dense[1].flatten(0, 1), labels)
        return *cls, loss


class TestDecisions:
    @pytest.mark.parametrize('routing', ['attention', 'random', 'uniform'])
    def test_as_many_are_split_as_asked_and_no_padding(self, routing):
        """Of 5 x 7 regions; of the second image 5 x 3 hold something."""
        x = torch.rand(2, 3, 77, 100) + 0.1
        x[1, :, :, 40:] = 0
        model = cf_vit(routing=routing, alpha=0.3)
        for progress, counts in ((0.0, [35, 15]), (0.5, [23, 10])):
            model.anneal(progress)
            model(x)
            split = model.cost.maps[0].share == 1
            assert split.sum((1, 2)).tolist() == counts
        model.eval()(x)
        split = model.cost.maps[0].share == 1
        assert split.sum((1, 2)).tolist() == [11, 5]
        assert not split[1, :, 3:].any()
        assert not model.router.adaptive and not model.router.priced

    def test_sure_images_leave_and_others_run_alone(self):
        model, x = cf_vit(num_classes=5, price=0.5).eval(), pictures(6, 64, 48)
        ran = []
        model.reuse_block.register_forward_hook(
            lambda module, args, output: ran.append(len(output) // 12)
        )
        coarse, _ = model(x)
        sure = coarse.softmax(-1).amax(-1)
        assert (1 - sure < 0.5).any() and (1 - sure >= 0.5).any()
        (some,), ran[:] = ran, []
        assert some == (1 - sure >= 0.5).sum()
        for price, expected in ((1.0, []), (0.0, [6])):
            model.exit_router.price = price
            outs = model(x)
            assert ran == expected
            assert outs[0].equal(outs[1]) == (price == 1)
            ratios = model.cost.maps[1].share.flatten()
            assert ratios.eq(1).all() == (price == 0)

    def test_a_price_meets_a_budget(self):
        model = cf_vit(num_classes=5, price=0.5).eval()
        ratio_at = ratio_at_price(model, pictures(40, 64, 64).split(1))
        price, spent = find_price(ratio_at, 0.5)
        assert 0 < price < 1 and spent == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize('kwargs', [{}, dict(num_classes=5, price=0.5)])
    def test_ratios_need_no_second_pass(self, kwargs):
        model, x = cf_vit(**kwargs).eval(), pictures(4, 72, 88)
        model(x)
        expected = model.cost.ratio
        model.run_mixed = None
        assert model.ratios(x).equal(expected)

    @pytest.mark.parametrize(
        'kwargs, said',
        [
            (dict(alpha=0), r'must be in \(0, 1\], but got 0'),
            (dict(routing='effect'), "'finest', but got 'effect'"),
            (dict(num_classes=5, price=1.5), r'price = 1 - eta must be in'),
            (dict(price=0.2), 'set num_classes, or leave the price at 0'),
            (dict(num_classes=0), 'num_classes must be an integer of at'),
            (dict(num_classes=5, out_indices=0), 'not for out_indices'),
            (dict(num_classes=5, distilled=True), 'distilled=True'),
            (dict(attention_from=-1), 'attention_from=-1 must be a block'),
        ],
    )
    def test_what_is_refused(self, kwargs, said):
        with pytest.raises(UserError, match=said):
            cf_vit(**kwargs)


class TestPlainWeights:
    @pytest.mark.parametrize('size', [64, (64, 96)])
    def test_with_all_split_it_begins_as_the_plain_vit(self, size):
        plain = deit(routing='finest', pretrain_img_size=size).eval()
        model = CFViT(
            plain.arch, alpha=1.0, patch_size=8, pretrain_img_size=size
        ).eval()
        model.load_state_dict(plain.state_dict())
        x = pictures(2, 64, 88) + 9  # no padding, which is not split
        for ours, theirs in zip(model(x), plain(x), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    def test_what_is_reused_is_0_at_first_whatever_initialises(self):
        everywhere = dict(type='TruncNormal', layer='Linear', std=0.02)
        model = cf_vit(init_cfg=everywhere)
        model.init_weights()
        assert model.reuse_block[1].fc1.weight.any()
        assert not model.reuse_block[1].fc2.weight.any()

    def test_a_classifier_can_be_trained_on_a_frozen_rest(self):
        model = cf_vit(num_classes=3, frozen_stages=3)
        sum(out.sum() for out in model(pictures(2, 64, 64))).backward()
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {'head.weight', 'head.bias'}

    def test_a_classifier_of_other_classes_starts_anew(self):
        plain = deit(routing='finest')
        head = {
            'head.weight': torch.rand(9, 24),
            'head.bias': torch.rand(9),
        }
        for num, kept in ((9, True), (5, False)):
            model = cf_vit(num_classes=num)
            model.load_state_dict(plain.state_dict() | head)
            assert model.head.weight.shape == (num, 24)
            assert kept == model.head.weight.equal(head['head.weight'])
            assert kept or not model.head.bias.any()
        plain.load_state_dict(model.state_dict())  # whose rest it drops
