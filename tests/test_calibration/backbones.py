"""Small backbones as calibration takes them: by error, in evaluation."""

from tests import small


def pvt(routing='error', **kwargs):
    return small.pvt(routing, **kwargs).eval()


def deit(routing='error', **kwargs):
    return small.deit(routing, **kwargs).eval()
