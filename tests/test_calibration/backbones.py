"""Small backbones whose blocks do something."""

from mmdge.models import DGEPVT, DGEDeiT

PVT = dict(
    embed_dims=(8, 16, 16, 32), num_layers=(1, 2, 1, 1), num_heads=(1, 2, 2, 4)
)
DEIT = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)


def pvt(routing='error', **kwargs):
    kwargs = dict(dict(drop_path_rate=0.0, pretrain_img_size=64), **kwargs)
    return _shaken(DGEPVT(PVT, routing=routing, **kwargs))


def deit(routing='error', **kwargs):
    kwargs = dict(dict(drop_path_rate=0.0, pretrain_img_size=128), **kwargs)
    return _shaken(DGEDeiT(DEIT, routing=routing, **kwargs))


def _shaken(model):
    """Out of the linear regime around zero; routers as they are."""
    for name, parameter in model.named_parameters():
        if 'norm' not in name and '.router.' not in name:
            parameter.data.mul_(4)
    return model.eval()
