"""The converter, as a user runs it."""

import pytest
import torch

from mmdge.models import DGEPVT, DGEConvNeXt, DGEDeiT, DGEPVTv2, DGESwin
from mmdge.models.architectures import LAYOUTS
from tests.forked import forked
from tests.small import CONVNEXT, DEIT, SWIN, DGELVViT, dpvt, token_routing

TOOL = 'tools/model_converters/convert_checkpoint.py'
PVT = dict(
    embed_dims=(16, 32, 40, 64),
    num_layers=(1, 1, 1, 1),
    num_heads=(1, 2, 5, 8),
)
MODELS = dict(
    ConvNeXt=lambda **kwargs: DGEConvNeXt(CONVNEXT, out_indices=3, **kwargs),
    DPVT=dpvt,
    PVT=lambda **kwargs: DGEPVT(PVT, pretrain_img_size=64, **kwargs),
    PVTv2=lambda **kwargs: DGEPVTv2(PVT, **kwargs),
    Swin=lambda **kwargs: DGESwin(
        SWIN, window_size=4, out_indices=3, **kwargs
    ),
    ViT=lambda **kwargs: DGEDeiT(
        dict(
            embed_dims=48,
            num_layers=2,
            num_heads=3,
            feedforward_channels=96,
        ),
        pretrain_img_size=64,
        **kwargs,
    ),
    LVViT=lambda **kwargs: DGELVViT(DEIT, pretrain_img_size=64, **kwargs),
)


@pytest.fixture
def whole(tmp_path):
    """A trained model of a host's, with routers, in our names."""

    def save(family, **kwargs):
        model = MODELS[family](**kwargs)
        state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
        state['neck.convs.0.weight'] = torch.rand(2)
        torch.save({'state_dict': state}, tmp_path / 'whole.pth')
        return tmp_path / 'whole.pth', model

    return save


@pytest.mark.parametrize(
    'layout', LAYOUTS, ids=[f'{la.name}-{la.family}' for la in LAYOUTS]
)
def test_there_and_back(layout, whole, tmp_path, tool):
    source, model = whole(layout.family)
    there, back = tmp_path / 'there.pth', tmp_path / 'back.pth'
    said = tool(TOOL, source, there, '--to', layout.name)
    assert f'mmdge {layout.family} to {layout.name}: ' in said
    assert 'not of the backbone: neck\n' in said
    static = layout.name not in ('mmdge', 'vtpack')
    assert ('has no place for: ' in said) == static
    tool(TOOL, there, back)
    expected = model.state_dict()
    converted = torch.load(back)['state_dict']
    for key, value in converted.items():
        assert value.equal(expected[key])
        assert value.untyped_storage().nbytes() == value.nbytes
    missing = expected.keys() - converted.keys()
    assert (
        all('.router.' in key for key in missing) and bool(missing) == static
    )


def test_the_container_is_the_one_that_is_read_there(whole, tmp_path, tool):
    source, model = whole('ViT')
    tool(TOOL, source, tmp_path / 'deit.pth', '--to', 'official')
    state = torch.load(tmp_path / 'deit.pth')['model']
    fused = model.blocks[1].attn
    assert state['blocks.1.attn.qkv.bias'].equal(
        torch.cat([fused.q.bias, fused.kv.bias])
    )


def test_a_grid_has_one_layout(tmp_path, tool):
    source, out = tmp_path / 'grid.pth', tmp_path / 'out.pth'
    state = token_routing().state_dict()
    torch.save(state, source)
    said = tool(TOOL, source, out, '--to', 'mmdet', expect=2)
    assert 'mmdet has no TokenRoutingPVT; allowed are mmdge' in said
    tool(TOOL, source, out)
    assert torch.load(out)['state_dict'].keys() == state.keys()


@pytest.mark.slow
def test_granularities_and_a_process_of_its_own(whole, tmp_path):
    source, _ = whole('PVT', granularities=(1, 4))
    out = tmp_path / 'vtpack.pth'
    command = [TOOL, source, out, '--to', 'vtpack']
    forked(*command)
    splits = torch.load(out)['model']['block4.0.dge.splits']
    assert splits.tolist() == [4, 1]
    said = forked(*command, expect=2)
    assert said.splitlines()[-1].startswith('error: ')
    assert 'is there already' in said


@pytest.mark.parametrize(
    'content, options, message',
    [
        ({'conv1.weight': torch.zeros(1)}, [], 'no PVT and no ViT but conv1'),
        ([1], [], 'one object of type list'),
        (None, ['--to', 'mmdet'], '--to mmdet: mmdet has no ViT; allowed'),
        (
            {
                'blocks.0.attn.qkv.weight': torch.zeros(3, 1),
                'blocks.0.ls1.gamma': torch.zeros(1),
            },
            ['--to', 'mmseg'],
            '--to mmseg: mmseg has no place for blocks.0.ls1.gamma, without',
        ),
    ],
)
def test_mistakes(whole, tmp_path, tool, content, options, message):
    source, _ = whole('ViT')
    if content is not None:
        torch.save(content, source)
    said = tool(TOOL, source, tmp_path / 'out.pth', *options, expect=2)
    (error,) = [s for s in said.splitlines() if s.startswith('error: ')]
    assert message in error
    assert not (tmp_path / 'out.pth').exists()
