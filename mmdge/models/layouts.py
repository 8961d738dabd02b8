"""The names that PVT and DeiT have in other code bases.

Each :class:`Layout` is a table from the names of one code base to ours.
:func:`recognise` finds the layout of a state dict, :func:`to_ours` and
:func:`from_ours` translate, whatever the sizes. Nothing changes its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """Names of one kind of entry: theirs, and ours.

    ``{s}``, ``{i}`` and ``{j}`` are numbers (``{s-1}``: one less than ours),
    ``{p}`` is the rest of the name. Where two of ours are one of theirs, its
    first third is the queries' and the rest the keys' and values'.
    """

    theirs: str
    ours: tuple[str, ...]
    conv: bool = False  # our linear weight is their 1 x 1 convolution
    splits: bool = False  # our sides of patches are theirs along a region


class Layout(NamedTuple):
    """The names of one code base.

    Attributes:
        family (str): ``'PVT'`` or ``'DeiT'``.
        name (str): Whose names.
        mark (str): Pattern of an entry by which the layout is known.
        rows (tuple[Row, ...]): Names that differ; the first match counts.
        no_place (str): Pattern of our entries that it has no place for.
        container (str, optional): Key under which its files hold the
            weights. Defaults to None: they hold nothing else.
    """

    family: str
    name: str
    mark: str
    rows: tuple[Row, ...] = ()
    no_place: str = ''
    container: str | None = None


def _qkv(theirs: str, block: str) -> Row:
    return Row(theirs, (block + '.attn.q.{p}', block + '.attn.kv.{p}'))


HEAD = r'head(_dist)?\..*'
ROUTER = r'.*\.router\..*'
_NOT_VTPACKS = r'.*\.router\.(?!gate\.|sides$).*'
_PVT = 'block{s}.{j}'
_DEIT = 'blocks.{i}'
_MMDET = 'layers.{s-1}.1.{j+1}'  # {j} 0 of theirs is the position embedding

# The first whose mark is found counts.
LAYOUTS = (
    Layout(
        'PVT',
        'vtpack',  # the official DGE code
        r'block\d\.\d+\.dge\..*',
        (
            Row(_PVT + '.dge.splits', (_PVT + '.router.sides',), splits=True),
            Row(_PVT + '.dge.router.{p}', (_PVT + '.router.{p}',)),
        ),
        _NOT_VTPACKS,
        'model',
    ),
    Layout(
        'PVT',
        'mmdge',
        r'block\d\.\d+\.router\..*',
        (),
        HEAD,
        'state_dict',
    ),
    Layout(
        'PVT',
        'mmdet',
        r'layers\.\d\.1\.0\.pos_embed',
        (
            Row('layers.{s-1}.1.0.pos_embed', ('pos_embed{s}',)),
            Row('layers.{s-1}.0.projection.{p}', ('patch_embed{s}.proj.{p}',)),
            Row('layers.{s-1}.0.norm.{p}', ('patch_embed{s}.norm.{p}',)),
            _qkv(_MMDET + '.attn.attn.in_proj_{p}', _PVT),
            Row(
                _MMDET + '.attn.attn.out_proj.{p}', (_PVT + '.attn.proj.{p}',)
            ),
            Row(_MMDET + '.ffn.layers.0.{p}', (_PVT + '.mlp.fc1.{p}',), True),
            Row(_MMDET + '.ffn.layers.3.{p}', (_PVT + '.mlp.fc2.{p}',), True),
            Row(_MMDET + '.{p}', (_PVT + '.{p}',)),
        ),
        rf'cls_token|norm\..*|{HEAD}|{ROUTER}',
        'state_dict',
    ),
    # A static PVT of ours has the same names.
    Layout('PVT', 'official', r'block\d\.\d+\.attn\..*', (), ROUTER),
    Layout(
        'DeiT',
        'vtpack',
        r'blocks\.\d+\.dge\..*',
        (
            Row(
                _DEIT + '.dge.splits', (_DEIT + '.router.sides',), splits=True
            ),
            Row(_DEIT + '.dge.router.{p}', (_DEIT + '.router.{p}',)),
        ),
        _NOT_VTPACKS,
        'model',
    ),
    Layout(
        'DeiT',
        'mmpretrain',
        r'layers\.\d+\.attn\.qkv\..*',
        (
            Row('patch_embed.projection.{p}', ('patch_embed.proj.{p}',)),
            _qkv('layers.{i}.attn.qkv.{p}', _DEIT),
            Row('layers.{i}.ln1.{p}', (_DEIT + '.norm1.{p}',)),
            Row('layers.{i}.ln2.{p}', (_DEIT + '.norm2.{p}',)),
            Row('layers.{i}.ffn.layers.0.0.{p}', (_DEIT + '.mlp.fc1.{p}',)),
            Row('layers.{i}.ffn.layers.1.{p}', (_DEIT + '.mlp.fc2.{p}',)),
            Row('layers.{i}.{p}', (_DEIT + '.{p}',)),
            Row('ln1.{p}', ('norm.{p}',)),
        ),
        rf'{HEAD}|{ROUTER}',
        'state_dict',
    ),
    Layout(
        'DeiT',
        'official',  # and timm's
        r'blocks\.\d+\.attn\.qkv\..*',
        (_qkv(_DEIT + '.attn.qkv.{p}', _DEIT),),
        ROUTER,
        'model',
    ),
    Layout(
        'DeiT',
        'mmdge',
        r'blocks\.\d+\.attn\.q\..*',
        (),
        HEAD,
        'state_dict',
    ),
)


def unwrap(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Find the backbone's weights in what a file holds.

    Args:
        checkpoint (Mapping): A state dict; or one inside a training's state,
            of a parallel wrapper (``module.``), or of a whole model with its
            backbone below ``backbone.``.

    Returns:
        tuple[dict, list[str]]: The backbone's entries, and the names of the
        rest of the model.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    weights = {key.removeprefix('module.'): v for key, v in checkpoint.items()}
    backbone = {
        key.removeprefix('backbone.'): value
        for key, value in weights.items()
        if key.startswith('backbone.')
    }
    if not backbone:
        return weights, []
    return backbone, [k for k in weights if not k.startswith('backbone.')]


def recognise(names: Iterable[str]) -> Layout | None:
    """Find the layout of a backbone's entries by their names."""
    names = list(names)
    for layout in LAYOUTS:
        if any(re.fullmatch(layout.mark, name) for name in names):
            return layout
    return None


def to_ours(state: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Translate names and shapes to ours; what has no row stays as it is."""
    ours = {}
    for key, value in state.items():
        row, fields = _find(key, ((row, row.theirs) for row in layout.rows))
        names, values = [key], [value]
        if row is not None:
            names = [_fill(name, fields) for name in row.ours]
            values *= len(names)
            if isinstance(value, Tensor) and value.dim():
                if len(names) == 2:  # (3C, ...) -> (C, ...), (2C, ...)
                    values = value.tensor_split([len(value) // 3])
                elif row.conv and value.dim() == 4:
                    values = [value.flatten(1)]  # (O, I, 1, 1) -> (O, I)
                elif row.splits:
                    values = [_invert(value)]
        ours.update(zip(names, values, strict=True))
    return ours


def from_ours(
    state: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate our names and shapes to a layout's; inverse of ``to_ours``.

    Args:
        state (Mapping[str, Tensor]): Entries of our backbone.
        layout (Layout): Whose names to use.

    Returns:
        tuple[dict, list[str]]: The translated entries, and those of ours
        that the layout has no place for.
    """
    dropped = [key for key in state if re.fullmatch(layout.no_place, key)]
    if 'cls_token' in dropped and 'pos_embed4' in state:
        state = {**state, 'pos_embed4': state['pos_embed4'][:, 1:]}
    theirs = {}
    for key, value in state.items():
        seconds = (name for row in layout.rows for name in row.ours[1:])
        if key in dropped or any(_match(name, key) for name in seconds):
            continue  # a second one goes with the first of its row
        row, fields = _find(key, ((row, row.ours[0]) for row in layout.rows))
        if row is None:
            theirs[key] = value
            continue
        if len(row.ours) == 2:
            value = torch.cat([state[_fill(n, fields)] for n in row.ours])
        elif row.conv and value.dim() == 2:
            value = value[..., None, None]  # (O, I) -> (O, I, 1, 1)
        elif row.splits:
            value = _invert(value)
        theirs[_fill(row.theirs, fields)] = value
    return theirs, dropped


def _invert(sides: Tensor) -> Tensor:
    """Sides of patches to patches along a region, or back."""
    return sides.max() // sides if sides.numel() else sides


_FIELD = re.compile(r'\{(\w)([+-]\d)?\}')


@cache
def _pattern(template: str) -> re.Pattern:
    parts = _FIELD.split(template)  # literal, field, offset, literal, ...
    pattern = re.escape(parts[0])
    for name, literal in zip(parts[1::3], parts[3::3], strict=True):
        kind = '.+' if name == 'p' else r'\d+'
        pattern += f'(?P<{name}>{kind}){re.escape(literal)}'
    return re.compile(pattern)


def _match(template: str, key: str) -> dict[str, Any] | None:
    """The fields of a template in ``key``; None if it's another name."""
    found = _pattern(template).fullmatch(key)
    if found is None:
        return None
    return {
        name: found[name] if name == 'p' else int(found[name]) - int(n or 0)
        for name, n in _FIELD.findall(template)
    }


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    def text(found: re.Match) -> str:
        name, offset = found.groups()
        return str(fields[name] + int(offset) if offset else fields[name])

    return _FIELD.sub(text, template)


def _find(
    key: str, rows: Iterable[tuple[Row, str]]
) -> tuple[Row | None, dict[str, Any]]:
    """The first row whose template matches, and the template's fields."""
    for row, template in rows:
        fields = _match(template, key)
        if fields is not None:
            return row, fields
    return None, {}
