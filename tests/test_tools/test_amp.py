"""Mixed precision: the backbones in it, and the option that asks for it."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import OPTIM_WRAPPERS

import mmdge
from mmdge.models.backbones import DGEDeiT
from mmdge.utils import UserError
from tests.forked import forked
from tests.tool_runs import SHAPES, data_options, functions_of

PVT = dict(
    embed_dims=(16, 32, 64, 64),
    num_layers=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
)
DEIT = dict(embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=96)
BACKBONES = dict(
    pvt=lambda routing: mmdge.DGEPVT(PVT, routing=routing, drop_path_rate=0),
    deit=lambda routing: DGEDeiT(DEIT, routing=routing, drop_path_rate=0),
)
ROUTINGS = dict(
    learned=dict(type='GumbelRouter', noise=False, init_finest=0.34),
    ranked=dict(type='QuantileRouter', score='learned'),
    variance='variance',
    uniform='uniform',
)
DTYPES = ['float16', 'bfloat16']


@pytest.fixture(scope='module')
def script():
    return functions_of('tools/train.py')


def gradients(model, x, dtype=None):
    model.zero_grad()
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        loss = sum(m.float().square().mean() for m in model(x))
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('routing', ROUTINGS)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_backward_in_mixed_precision(backbone, routing, dtype):
    model = BACKBONES[backbone](ROUTINGS[routing])
    x = torch.randn(2, 3, 64, 96)
    expected = gradients(model, x)
    found = gradients(model, x, getattr(torch, dtype))
    assert model.cost.dynamic.dtype == torch.float64
    for name, grad in found.items():
        assert grad.dtype == torch.float32 and grad.isfinite().all(), name
    if routing == 'uniform':  # others decide by what they compute
        every, exact = (
            torch.cat([grads[n].flatten() for n in expected])
            for grads in (found, expected)
        )
        assert torch.cosine_similarity(every, exact, 0) > 0.99


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_option_chooses_the_type(script, dtype):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD'))))
    script.use_amp(cfg, dtype)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.dtype == dtype
    scaled = cfg.optim_wrapper.loss_scale == 'dynamic'
    assert scaled == (dtype == 'float16')
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(UserError, match='does not go with'):
        script.use_amp(cfg, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a CPU machine')
def test_bfloat16_trains(script, monkeypatch):
    """MMEngine's wrapper as configured; only its question for a GPU is met."""
    cfg = Config(dict(optim_wrapper=dict()))
    script.use_amp(cfg, 'bfloat16')
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )
    model = BACKBONES['pvt']('variance')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(
        dict(cfg.optim_wrapper, optimizer=optimizer)
    )
    assert isinstance(wrapper, AmpOptimWrapper)
    losses, kinds = [], set()
    model.block1[0].attn.q.register_forward_hook(
        lambda module, args, output: kinds.add(output.dtype)
    )
    x = torch.randn(2, 3, 64, 64)
    for _ in range(3):
        with wrapper.optim_context(model):
            maps = model(x)
        loss = sum(m.float().square().mean() for m in maps)
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert losses[2] < losses[0] and kinds == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', DTYPES)
def test_a_training_in_mixed_precision(dtype, shapes, tmp_path):
    forked(
        *('tools/train.py', SHAPES['mmdet'], '--amp', dtype),
        *('--work-dir', tmp_path, '--cfg-options'),
        *data_options('mmdet', shapes),
        *('train_cfg.max_epochs=2', 'train_cfg.val_interval=2'),
        *('param_scheduler.1.end=2', 'train_dataloader.batch_size=4'),
    )
    state = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert all(w.isfinite().all() for w in state['state_dict'].values())
    assert bool(state['optimizer']['loss_scaler']) == (dtype == 'float16')
