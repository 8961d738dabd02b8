"""The hosts' own backbones, and what stands for them here.

A host's backbone is known by its type. What its config says is translated to
one of the architectures; the checkpoint stays as it is, because these load
the hosts' layouts. Names and defaults are read from the host's constructor:
only what differs needs a rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from mmengine.logging import print_log

from mmdge.registry import MODELS
from mmdge.utils import UserError
from mmdge.utils.checks import type_name, walk

from .architectures import PVT, Backbone, ConvNeXt, PVTv2, Swin, ViT
from .methods import Granularity, Method

Given = dict[str, Any]  # a host's arguments, its defaults included

# What a backbone that has its checkpoint's weights returns doesn't depend on
# these: biases that a checkpoint lacks are set to 0.
WITHOUT_EFFECT = {
    *('init_cfg', 'pretrained', 'convert_weights', 'norm_eval'),
    *('qkv_bias', 'patch_bias'),
    'linear_pw_conv',  # either form of a layer loads
}
IN_TRAINING = {'drop_rate', 'attn_drop_rate'}
# Values that ours know, where a host has more.
VALUES = dict(
    out_type=('featmap', 'cls_token'),
    interpolate_mode=('bicubic', 'bilinear'),
)


def to_ours(
    backbone: Mapping[str, Any],
    scope: str | None = None,
    method: type[Method] = Granularity,
) -> dict[str, Any] | None:
    """The dynamic form of a host's own backbone, run as its dense twin.

    Args:
        backbone (Mapping): Its config.
        scope (str, optional): The default scope of the config that it is a
            part of; its own ``_scope_`` goes before. Defaults to None: that
            of the process.
        method (type): Of the dynamic form. Defaults to Granularity.

    Returns:
        dict | None: The config of a backbone of ours, which takes the same
        checkpoint and returns the same outputs; its routing is ``'finest'``.
        None if no host's backbone of this type is known.

    Raises:
        UserError: If it has no form of this method, or has settings that
            the dynamic form, or its type, lacks.
    """
    kind = _find(backbone, scope)
    host = _host_name(kind)
    if host not in HOSTS:
        return None
    architecture, translate = HOSTS[host]
    form = dynamic_form(architecture, method)
    if form is None:
        others = [k for k, (a, _) in HOSTS.items() if dynamic_form(a, method)]
        raise UserError(
            f'{host} has no form for this --method; that have '
            f'{", ".join(others)}'
        )
    defaults, known = _defaults(kind), _defaults(architecture)
    given = {**defaults, **backbone}
    for key in ('type', '_scope_'):
        given.pop(key, None)
    if foreign := [key for key in given if key not in defaults]:
        raise UserError(f'{host} has no argument {", ".join(foreign)}')
    ours, unknown, dropped = translate(given, kind), {}, []
    for key, value in given.items():
        if key in WITHOUT_EFFECT:
            continue
        if key in known and value in VALUES.get(key, [value]):
            ours.setdefault(key, value)
        elif key in IN_TRAINING:
            dropped += [f'{key}={value}'] if value else []
        elif _plain(key, value) != _plain(key, defaults[key]):
            unknown[key] = value
    if unknown:
        raise UserError(
            f'{host} with {_listed(unknown)} has no dynamic form; with '
            f'{_listed({k: defaults[k] for k in unknown})} it is mmdge.{form}'
        )
    if dropped:
        print_log(
            f'left out, because mmdge.{form} has no dropout: '
            f'{", ".join(dropped)}, which acts in training only',
            'current',
        )
    ours = {
        key: value
        for key, value in ours.items()
        if key == 'arch' or _plain(key, value) != _plain(key, known[key])
    }
    return dict(type=f'mmdge.{form}', **ours, routing='finest')


def known_types() -> str:
    """The types that have a dynamic form, host by host."""
    by_host = defaultdict(list)
    for name in HOSTS:
        host, _, kind = name.partition('.')
        by_host[host].append(kind)
    return '; '.join(
        f'{h}: {", ".join(kinds)}' for h, kinds in by_host.items()
    )


def wrapped(model: Mapping[str, Any], scope: str | None = None) -> list[str]:
    """Where a model's config has known backbones, but as its own backbone.

    Args:
        model (Mapping): The config of a model.
        scope (str, optional): See :func:`to_ours`. Defaults to None.

    Returns:
        list[str]: Keys and types, e.g. ``'model.detector.backbone, a
        SwinTransformer'``.
    """
    return [
        f'{key}, a {type_name(node)}'
        for key, node in walk(model, 'model')
        if key != 'model.backbone' and node.get('type')
        for kind in [_find(node, scope)]
        if _host_name(kind) in HOSTS or issubclass(kind, Backbone)
    ]


def dynamic_form(
    architecture: type[Backbone], method: type[Method] = Granularity
) -> str | None:
    """The registered name of a method on an architecture, its first one."""
    for name, kind in MODELS.module_dict.items():
        if architecture in kind.__bases__ and issubclass(kind, method):
            return name
    return None


def _find(config: Mapping[str, Any], scope: str | None) -> type:
    """The class that a config's type is, or names in a scope."""
    kind = config.get('type')
    if isinstance(kind, str):
        scope = config.get('_scope_', scope)
        with MODELS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    return kind if isinstance(kind, type) else object


def _host_name(kind: type) -> str:
    return f'{kind.__module__.partition(".")[0]}.{kind.__name__}'


def _defaults(kind: type) -> dict[str, Any]:
    """Names and defaults of a constructor, what it hands on included."""
    found = {}
    for base in reversed(kind.__mro__):
        own = signature(base.__init__).parameters.values()
        fixed = all(
            p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in own
        )
        named = {p.name: p.default for p in own if p.default is not p.empty}
        found = named if fixed else {**found, **named}
    return found


def _plain(key: str, value: Any) -> Any:
    """A value in a form in which equal settings are equal."""
    if isinstance(value, Mapping):
        value = {k: _plain(k, v) for k, v in value.items()}
        if key == 'norm_cfg':  # what its layer has by default
            value = dict(eps=1e-5, requires_grad=True) | value
        return (
            value | dict(type=type_name(value)) if 'type' in value else value
        )
    if isinstance(value, (list, tuple)):
        return [_plain('', each) for each in value]
    return value


def _listed(settings: Mapping[str, Any]) -> str:
    return ', '.join(f'{key}={value!r}' for key, value in settings.items())


def _norm_eps(given: Given) -> dict[str, float]:
    """That of layer norms; another norm is left where it is."""
    plain = _plain('norm_cfg', given['norm_cfg'])
    if (
        isinstance(plain, Mapping)
        and plain.keys() == {'type', 'eps', 'requires_grad'}
        and plain['type'] == 'LN'
        and plain['requires_grad']
    ):
        del given['norm_cfg']
        return dict(norm_eps=plain['eps'])
    return {}


def _named(architecture: type[Backbone], arch: Mapping) -> dict[str, Any]:
    """An architecture by its name, if it has one here."""
    arch = _plain('', arch)
    for name, own in architecture.arch_zoo.items():
        own = {**getattr(architecture, 'arch_defaults', {}), **own}
        if all(_plain('', own.get(k)) == v for k, v in arch.items()):
            return dict(arch=name)
    return dict(arch=arch)


def _settings(arch: str | Mapping, zoo: Mapping[str, Mapping]) -> Mapping:
    """What a host's architecture is, by its name or as it is."""
    if not isinstance(arch, str):
        return arch
    if arch.lower() not in zoo:
        raise UserError(f'arch={arch!r} is none of {", ".join(zoo)}')
    return zoo[arch.lower()]


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _pvt(
    given: Given, kind: type, architecture: type[Backbone] = PVT
) -> dict[str, Any]:
    width, heads = given.pop('embed_dims'), given.pop('num_heads')
    sizes = ('num_layers', 'mlp_ratios', 'sr_ratios')
    arch = {key: given.pop(key) for key in sizes}
    arch |= dict(embed_dims=[width * each for each in heads], num_heads=heads)
    return _named(architecture, arch) | _norm_eps(given)


def _pvt_v2(given: Given, kind: type) -> dict[str, Any]:
    given.pop('pretrain_img_size')  # it has no positions
    return _pvt(given, kind, PVTv2)


def _mit(given: Given, kind: type) -> dict[str, Any]:
    given['mlp_ratios'] = [given.pop('mlp_ratio')] * len(given['num_heads'])
    return _pvt(given, kind, PVTv2)


def _swin(given: Given, kind: type) -> dict[str, Any]:
    given.pop('pretrain_img_size')  # of absolute positions alone
    sizes = ('embed_dims', 'depths', 'num_heads')
    return _named(Swin, {key: given.pop(key) for key in sizes})


def _mmpretrains_swin(given: Given, kind: type) -> dict[str, Any]:
    for key in ('img_size', 'interpolate_mode'):  # of absolute positions
        given.pop(key)
    arch = _settings(given.pop('arch'), kind.arch_zoo)
    frozen = given.pop('frozen_stages')
    # At 0 the first stage is frozen; here the patch embedding alone.
    ours = dict(frozen_stages=frozen + 1 if frozen >= 0 else -1)
    match _plain('', given['stage_cfgs']):
        case {'block_cfgs': {'window_size': int(side), **more}, **rest} if (
            not more and not rest
        ):
            given['stage_cfgs'], given['window_size'] = {}, side
    return _named(Swin, arch) | ours


def _convnext(given: Given, kind: type) -> dict[str, Any]:
    arch = _settings(given.pop('arch'), kind.arch_settings)
    return _named(ConvNeXt, arch)


def _vit(given: Given, kind: type, **kwargs: Any) -> dict[str, Any]:
    arch = _settings(given.pop('arch'), kind.arch_zoo)
    sides, patches = _pair(given.pop('img_size')), _pair(given['patch_size'])
    if patches[0] == patches[1]:
        given['patch_size'] = patches[0]
    # The host counts a patch at the border that is no whole one.
    pairs = zip(sides, patches, strict=True)
    whole = tuple(-(-side // patch) * patch for side, patch in pairs)
    ours = dict(pretrain_img_size=whole, **kwargs)
    layers = given['layer_cfgs']
    if isinstance(layers, Mapping) and layers.keys() <= {'ffn_type'}:
        ours |= given.pop('layer_cfgs')
    return _named(ViT, arch) | _norm_eps(given) | ours


def _mmsegs_vit(given: Given, kind: type) -> dict[str, Any]:
    width, ratio = given.pop('embed_dims'), given.pop('mlp_ratio')
    arch = {key: given.pop(key) for key in ('num_layers', 'num_heads')}
    arch |= dict(embed_dims=width, feedforward_channels=int(ratio * width))
    ours = dict(pretrain_img_size=given.pop('img_size'))
    return _named(ViT, arch) | _norm_eps(given) | ours


Translate = Callable[[Given, type], dict[str, Any]]

# A host's type, the architecture, and what takes out of the arguments those
# that have another name or form here.
HOSTS: dict[str, tuple[type[Backbone], Translate]] = {
    'mmdet.PyramidVisionTransformer': (PVT, _pvt),
    'mmdet.PyramidVisionTransformerV2': (PVTv2, _pvt_v2),
    'mmdet.SwinTransformer': (Swin, _swin),
    'mmpretrain.VisionTransformer': (ViT, _vit),
    'mmpretrain.DistilledVisionTransformer': (
        ViT,
        partial(_vit, distilled=True),
    ),
    'mmpretrain.SwinTransformer': (Swin, _mmpretrains_swin),
    'mmpretrain.ConvNeXt': (ConvNeXt, _convnext),
    'mmseg.MixVisionTransformer': (PVTv2, _mit),
    'mmseg.SwinTransformer': (Swin, _swin),
    'mmseg.VisionTransformer': (ViT, _mmsegs_vit),
}
