"""Weights of any known layout, brought to a backbone.

An architecture's tables of foreign names are its :class:`Layout` s, at the
foot of its file. :func:`to_ours` and :func:`from_ours` translate, whatever the
sizes; :func:`fit` makes the entries of one backbone out of a checkpoint, and
:func:`load` puts them in the way of PyTorch's and MMEngine's own loading.
No function changes what it is given, but for :func:`load`.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmdge.registry import MODELS
from mmdge.utils import UserError

from .layers import resize_pos_embed

# What a layout may have no place for, and a backbone no use.
HEAD = r'(head\w*|pre_logits|fc_norm|attn_pool)\..*'
ROUTER = r'(.*)\.router\..*'
_TOKENS = ('cls_token', 'dist_token')  # in the order of their positions
_EXTRAS = {
    HEAD: 'the classification head',
    r'norm\..*': 'the final norm, unused here',
    '|'.join(_TOKENS): 'an extra token, unused here',
    r'decoder.*|mask_token': "its pretraining's decoder and mask",
}
# Without these, weights of other kinds of ViT would give other features.
_OTHER_KINDS = r'(norm_pre|pre_norm|pre_ln|rel_pos_bias|rope)\..*'
# What says that the backbone shall do without an entry.
_SWITCHES = dict(
    cls_token='with_cls_token', dist_token='distilled', norm='final_norm'
)


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
        family (str): Whose weights, e.g. ``'PVT'`` or ``'DeiT'``.
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


def qkv(theirs: str, block: str) -> Row:
    """The row of a fused projection to queries, keys and values."""
    return Row(theirs, (block + '.attn.q.{p}', block + '.attn.kv.{p}'))


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


def recognise(
    names: Iterable[str], layouts: Iterable[Layout]
) -> Layout | None:
    """The first layout whose mark is among the names of entries."""
    names = list(names)
    for layout in layouts:
        if any(re.fullmatch(layout.mark, name) for name in names):
            return layout
    return None


def to_ours(state: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Translate names and shapes to ours; what has no row stays as it is."""
    ours = {}
    for key, value in state.items():
        names, values = [key], [value]
        for row in layout.rows:
            if _rename(key, row.theirs, row.ours[0]) is None:
                continue
            names = [_rename(key, row.theirs, name) for name in row.ours]
            values *= len(names)
            if isinstance(value, Tensor) and value.dim():
                if len(names) == 2:  # (3C, ...) -> (C, ...), (2C, ...)
                    values = value.tensor_split([len(value) // 3])
                elif row.conv and value.dim() == 4:
                    values = [value.flatten(1)]  # (O, I, 1, 1) -> (O, I)
                elif row.splits:
                    values = [_invert(value)]
            break
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
    tokens, last = _tokens(state)
    kept = [i for i, token in enumerate(tokens) if token not in dropped]
    if len(kept) < len(tokens):  # their positions go with them
        pos = state[last]
        pos = torch.cat([pos[:, kept], pos[:, len(tokens) :]], 1)
        state = {**state, last: pos}
    theirs = {}
    for key, value in state.items():
        for row in () if key in dropped else layout.rows:
            if any(_rename(key, name, row.theirs) for name in row.ours[1:]):
                break  # a second one goes with the first of its row
            name = _rename(key, row.ours[0], row.theirs)
            if name is None:
                continue
            if len(row.ours) == 2:
                other = _rename(key, *row.ours)
                value = torch.cat([value, state[other]])
            elif row.conv and value.dim() == 2:
                value = value[..., None, None]  # (O, I) -> (O, I, 1, 1)
            elif row.splits:
                value = _invert(value)
            theirs[name] = value
            break
        else:
            if key not in dropped:
                theirs[key] = value
    return theirs, dropped


def _invert(sides: Tensor) -> Tensor:
    """Sides of patches to patches along a region, or back."""
    return sides.max() // sides if sides.numel() else sides


_FIELD = re.compile(r'\{(\w)([+-]\d)?\}')


@cache
def _pattern(template: str) -> re.Pattern:
    def group(field: re.Match) -> str:
        return f'(?P<{field[1]}>{".+" if field[1] == "p" else "[0-9]+"})'

    return re.compile(_FIELD.sub(group, template.replace('.', r'\.')))


def _rename(key: str, source: str, target: str) -> str | None:
    """Move a name between templates; None if it isn't of the first."""
    found = _pattern(source).fullmatch(key)
    if found is None:
        return None
    offsets = dict(_FIELD.findall(source))

    def text(field: re.Match) -> str:
        name, offset = field.groups()
        if name == 'p':
            return found[name]
        return str(
            int(found[name]) - int(offsets[name] or 0) + int(offset or 0)
        )

    return _FIELD.sub(text, target)


def _tokens(state: Mapping[str, Any]) -> tuple[list[str], str]:
    """Extra tokens of weights, and the position embedding with their rows."""
    names = [key for key in state if key.startswith('pos_embed')]
    tokens = [token for token in _TOKENS if token in state]
    return tokens, max(names, default='')


def load(backbone: nn.Module, state_dict: dict, prefix: str) -> None:
    """Replace the entries below ``prefix`` by those that :func:`fit` makes.

    Whatever loads a backbone, alone or as a part of a model, MMEngine or
    PyTorch, comes through its ``_load_from_state_dict``, which calls this.

    Raises:
        UserError: If they don't fit; nothing is replaced.
    """
    given = [key for key in state_dict if key.startswith(prefix)]
    entries = {key[len(prefix) :]: state_dict[key] for key in given}
    entries, said = fit(entries, backbone)
    for key in given:
        del state_dict[key]
    state_dict.update({prefix + key: v for key, v in entries.items()})
    print_log(f'{type(backbone).__name__} from the {said}', 'current')


def fit(
    state_dict: Mapping[str, Any], backbone: nn.Module
) -> tuple[dict[str, Tensor], str]:
    """Bring a checkpoint of any layout to the entries of one backbone.

    Routers that it doesn't know get their initial values. Entries that are no
    part of a backbone and of no known kind are passed on: PyTorch, if strict,
    raises because of them, MMEngine warns. Of weights for another number of
    channels all but the first convolution's are taken, with a warning.

    Args:
        state_dict (Mapping): What a file holds, see :func:`unwrap`.
        backbone (nn.Module): With ``layouts``, ``arch``, ``arch_zoo``,
            ``in_channels``, ``unbuilt`` (how entries begin that it would have
            if its last output were the last there is), ``pos_embeds()`` (grid
            and interpolation of each) and ``routers_by_name()``.

    Returns:
        tuple[dict, str]: The backbone's entries; and what became of the
        checkpoint's, in one line.

    Raises:
        UserError: If it is no checkpoint of this architecture: an entry is
            missing, unknown or of another shape, or granularities differ.
    """
    weights, rest = unwrap(state_dict)
    layout = _find_layout(weights, backbone)
    ours, own = to_ours(weights, layout), backbone.state_dict()
    sizes, tokens = _sizes(ours), _tokens(ours)
    routers = backbone.routers_by_name()
    dropped = _drop(ours, own, tuple(backbone.unbuilt), routers)
    initial, zeros = _complete(ours, own, routers)
    stem = _keep_stem(ours, own, backbone.in_channels)
    _check(ours, own, backbone, layout, sizes)
    resized = _resize(ours, own, backbone.pos_embeds(), *tokens)
    if stem:
        print_log(
            f'{stem[0]} stays as it is and must be trained: the weights are '
            f'not for in_channels={backbone.in_channels}',
            'current',
            logging.WARNING,
        )
    added = len(initial) + len(zeros) + len(stem)
    said = [f'{len(ours.keys() & own.keys()) - added} entries loaded']
    if resized:
        said.append(f'resized: {", ".join(resized)}')
    for what, names in {
        "left at their initial values, the routers'": initial,
        'left at its initial value, of other channels': stem,
        'set to 0, biases that the file lacks': zeros,
        'dropped, not of the backbone': rest,
        **{f'dropped, {reason}': names for reason, names in dropped.items()},
    }.items():
        if names:
            said.append(f'{len(names)} {what}: {_some(names, 3)}')
    return ours, f'{_name(layout)} layout: {"; ".join(said)}'


def _find_layout(weights: Mapping[str, Any], backbone: nn.Module) -> Layout:
    name, known = type(backbone).__name__, backbone.layouts
    if not weights:
        raise UserError(
            f'the checkpoint holds nothing for the backbone {name}; '
            'the weights of a backbone alone go into its init_cfg: '
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    layout = recognise(weights, known)
    if layout is not None:
        return layout
    for other, kind in MODELS.module_dict.items():
        layout = recognise(weights, getattr(kind, 'layouts', ()))
        if layout is not None:
            raise UserError(
                f'the checkpoint holds a {layout.family} ({layout.name} '
                f'layout), but the backbone is {name}; use the weights of a '
                f"{known[0].family}, or set type='mmdge.{other}'"
            )
    raise UserError(
        f'the checkpoint holds no weights for the backbone {name} but '
        f'{_some(list(weights), 3)}; the layouts known are '
        + ', '.join(map(_name, known))
    )


def _sizes(ours: Mapping[str, Any]) -> dict[str, Any]:
    """``num_layers`` and ``embed_dims`` of weights; a tuple has its stages."""
    found = (re.match(r'blocks?(\d*)\.(\d+)\.', key) for key in ours)
    depths = Counter(stage for stage, _ in {m.groups() for m in found if m})
    stages = sorted(depths)
    stems = [ours.get(f'patch_embed{stage}.proj.weight') for stage in stages]
    sizes = {'num_layers': tuple(depths[stage] for stage in stages)}
    if all(isinstance(stem, Tensor) and stem.dim() for stem in stems):
        sizes['embed_dims'] = tuple(len(stem) for stem in stems)
    # A ViT's one stage has no number, and its sizes are no tuples.
    return {k: v[0] if '' in depths else v for k, v in sizes.items()}


def _router_of(key: str, routers: Iterable[str]) -> str | None:
    return next((r for r in routers if key.startswith(f'{r}.')), None)


def _drop(
    ours: dict[str, Any],
    own: Mapping[str, Tensor],
    unbuilt: tuple[str, ...],
    routers: Iterable[str],
) -> dict[str, list[str]]:
    """Take out what this backbone has no use for; return it by reason."""
    # A router of which one entry is another's is another's as a whole.
    foreign = {_router_of(key, routers) for key in ours.keys() - own.keys()}
    dropped = {}
    for key in list(ours):
        router = re.fullmatch(ROUTER, key)
        if _router_of(key, routers) in foreign - {None}:
            reason = "another routing's"
        elif key in own:
            continue
        elif key.startswith(unbuilt):
            reason = 'after the last output'
        elif router and any(k.startswith(f'{router[1]}.') for k in own):
            reason = "another routing's"
        else:
            found = (r for p, r in _EXTRAS.items() if re.fullmatch(p, key))
            reason = next(found, None)
        if reason:
            dropped.setdefault(reason, []).append(key)
            del ours[key]
    return dropped


def _complete(
    ours: dict[str, Any],
    own: Mapping[str, Tensor],
    routers: Mapping[str, nn.Module],
) -> tuple[list[str], list[str]]:
    """Add what may be missing: entries of routers, and biases of 0."""
    modules = {key.rpartition('.')[0] for key in ours}
    kinds = {re.sub(r'\d+', '*', key) for key in ours}
    initial, zeros = [], []
    for key in own:
        module, _, name = key.rpartition('.')
        if key in ours:
            continue
        if _router_of(key, routers):
            if name == 'sides' and {module, f'{module}.gate'} & modules:
                ours[key] = own[key]  # not told: taken to be the same
            elif module not in modules:  # of a module's all are there or none
                initial.append(key)
        elif name == 'bias' and re.sub(r'\d+', '*', key) not in kinds:
            if f'{module}.weight' in ours:  # a model without such biases
                ours[key] = torch.zeros_like(own[key])
                zeros.append(key)
    # Alike in all processes, which nothing brings together after loading.
    with torch.random.fork_rng([]):
        # Not torch.manual_seed, which reaches other devices too.
        torch.default_generator.manual_seed(0)
        for path in dict.fromkeys(_router_of(key, routers) for key in initial):
            router = copy.deepcopy(routers[path]).cpu()
            router.reset_parameters()
            fresh = router.state_dict(prefix=f'{path}.')
            ours.update({k: v for k, v in fresh.items() if k in initial})
    return initial, zeros


def _keep_stem(
    ours: dict[str, Any], own: Mapping[str, Tensor], channels: int
) -> list[str]:
    """Put the backbone's own in place of a stem for other images."""
    stem = [
        key
        for key, value in ours.items()
        if isinstance(value, Tensor)
        and key in own
        and own[key].dim() == value.dim() == 4
        and own[key].shape[1] == channels != value.shape[1]
        and own[key][:, 0].shape == value[:, 0].shape
    ]
    ours.update({key: own[key] for key in stem})
    return stem


def _check(
    ours: Mapping[str, Any],
    own: Mapping[str, Tensor],
    backbone: nn.Module,
    layout: Layout,
    sizes: Mapping[str, Any],
) -> None:
    """Raise unless the entries are what the backbone needs."""
    name, remembered = type(backbone).__name__, set()
    for path, router in backbone.routers_by_name().items():
        # Whether they fit is the router's own affair.
        remembered |= {f'{path}.{key}' for key, _ in router.named_buffers()}
        key = f'{path}.sides'
        theirs = torch.as_tensor(ours.get(key, ())).flatten().tolist()
        if theirs and theirs != router.sides.tolist():
            raise UserError(
                'the routers of the checkpoint choose among the granularities '
                f'{tuple(theirs)} ({key}), but those of {name} among '
                f'{tuple(router.sides.tolist())}; set granularities='
                f'{tuple(theirs)}, or another routing'
            )
    missing = [f'{k} {tuple(own[k].shape)}' for k in own if k not in ours]
    parts = {key.partition('.')[0] for key in own}
    unknown, other = [], []
    for key, value in ours.items():
        part, dot, _ = key.partition('.')
        if key not in own:
            if not dot or part in parts or re.fullmatch(_OTHER_KINDS, key):
                unknown.append(key)
        elif not isinstance(value, Tensor):
            unknown.append(key)
        elif key not in remembered:
            theirs, here = tuple(value.shape), tuple(own[key].shape)
            rows = 1 if key in backbone.pos_embeds() else 0  # resized later
            if theirs[:1] + theirs[1 + rows :] != here[:1] + here[1 + rows :]:
                other.append(f'{key} {theirs} in place of {here}')
    problems = [
        f'{verb} {len(names)} {what} ({_some(names, 20)})'
        for verb, what, names in (
            ('lacks', 'of its entries', missing),
            ('holds', 'unknown', unknown),
            ('has', 'of other shapes', other),
        )
        if names
    ]
    if problems:
        raise UserError(
            f'the checkpoint ({_name(layout)} layout) does not fit the '
            f'backbone {name}: it {" and ".join(problems)}; '
            + _remedy(missing, other, backbone, sizes)
        )


def _remedy(
    missing: Sequence[str],
    other: Sequence[str],
    backbone: nn.Module,
    sizes: Mapping[str, Any],
) -> str:
    def listed(size: Any) -> tuple:
        return tuple(size) if isinstance(size, Sequence) else (size,)

    def fits(arch: Mapping[str, Any]) -> bool:
        """Whether sizes agree; stages that aren't there don't count."""
        arch = {**getattr(backbone, 'arch_defaults', {}), **arch}
        return all(
            listed(arch.get(key, size))[: len(listed(size))] == listed(size)
            for key, size in sizes.items()
        )

    if not fits(backbone.arch):
        known = [n for n, arch in backbone.arch_zoo.items() if fits(arch)]
        text = ', '.join(f'{key}={value}' for key, value in sizes.items())
        arch = repr(known[0]) if known else f'dict({text}, ...)'
        return f'its sizes are {text}: set arch={arch}'
    arguments = {
        name
        for kind in type(backbone).__mro__
        for name in signature(kind.__init__).parameters
    }
    for entry, switch in _SWITCHES.items():
        lacks = any(re.match(rf'{entry}\b', key) for key in missing)
        if lacks and switch in arguments:
            return f'set {switch}=False'
    if any(re.match(ROUTER, key) for key in other):
        return 'set the granularities of its training, or another routing'
    return (
        'use weights of this architecture, or change the arguments of the '
        'backbone'
    )


def _resize(
    ours: dict[str, Any],
    own: Mapping[str, Tensor],
    pos_embeds: Mapping[str, tuple[tuple[int, int], str]],
    tokens: Sequence[str],
    last: str,
) -> list[str]:
    """Bring position embeddings to the backbone's extra tokens and grid.

    A file doesn't tell the grid: that many positions as ``pretrain_img_size``
    gives have its grid, others must be a square.

    Returns:
        list[str]: What was resized, or could be taken for something else.
    """
    said = []
    for key, (size, mode) in pos_embeds.items():
        pos, size = ours[key], tuple(size)
        rows = len(tokens) if key == last else 0
        # Some drop PVT's cls token and leave its position.
        for extra in (0, 1) if key == last and not rows else (rows,):
            num = pos.shape[1] - extra
            side = math.isqrt(max(num, 0))
            square = (side, side) if side and side * side == num else None
            source = size if num == math.prod(size) else square
            if source:
                break
        else:
            raise UserError(
                f'the checkpoint has {key} {tuple(pos.shape)} in place of '
                f'{tuple(own[key].shape)}, and its {num} positions are no '
                'square; set pretrain_img_size=(height, width) to that of its '
                'training'
            )
        num_extra = own[key].shape[1] - math.prod(size)
        names = ['x'.join(map(str, grid)) for grid in (source, size)]
        if source != size:
            said.append(f'{key} from {" to ".join(names)}')
        elif square and square != size:
            said.append(f'{key} not, taken to be {names[1]} and no square')
        if source != size or extra != num_extra:
            extras, grid = pos.tensor_split([extra], 1)
            # float: bicubic has no half precision everywhere
            grid = resize_pos_embed(grid.float(), source, size, mode)
            ours[key] = torch.cat([extras[:, :num_extra].float(), grid], 1)
    return said


def _name(layout: Layout) -> str:
    return f'{layout.name} {layout.family}'


def _some(names: Sequence[str], most: int) -> str:
    """The first few of many."""
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')
