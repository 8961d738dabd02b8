"""Weights of any known layout, brought to a backbone.

The names of other code bases are tables, one :class:`Layout` each, at the foot
of the file of their architecture.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from logging import WARNING
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmdge.registry import MODELS
from mmdge.utils import UserError

from .layers import resize_pos_embed

State = dict[str, Tensor]

HEAD = r'((aux_)?head\w*|pre_logits|fc_norm|attn_pool|pooler|classifier)\..*'
ROUTER = r'(?:(.*)\.)?router\..*'
PREDICTOR = r'score_predictor\..*'  # DynamicViT's official name
FAST_PATH = r'.*\.fast_path\..*'
COARSE_PASS = r'coarse_pos_embed|reuse_block\..*'  # CF-ViT's
# What few layouts have a place for, and no model that has it can do without.
EXTRA_PARTS = r'register_tokens|.*\.ls\d\.gamma|.*\.mlp\.w\d+\..*'
# Names under which models hold a backbone: the hosts', Hugging Face's.
PREFIXES = (
    *('backbone', 'vit', 'deit', 'dinov2', 'dinov2_with_registers'),
    'segformer',
)
TOKENS = ('cls_token', 'dist_token')  # in the order of their positions
UNFOLDED = [0, 2, 1, 3]  # column by column to row by row, and back
UNUSED = {
    HEAD: 'the classification head',
    r'norm\d?\..*': 'the final norm, unused here',
    '|'.join(TOKENS): 'an extra token, unused here',
    r'decoder.*|mask_token': "its pretraining's decoder and mask",
    rf'{PREDICTOR}|{FAST_PATH}': "another method's decisions",
    COARSE_PASS: "another method's coarse pass",
    r'.*\.(relative_position_index|attn_mask)': 'a table that follows from '
    'sizes',
}
# Parts of other ViTs, without which the features would be wrong.
NEEDED = (
    r'(norm_pre|pre_norm|pre_ln|rel_pos_bias|rope\w*|.*\.grn'
    r'|patch_embed\.bn\d)\..*'
)
SWITCHES = dict(  # without this argument a backbone does without the entry
    cls_token='with_cls_token', dist_token='distilled', norm='final_norm'
)


class Layout(NamedTuple):
    """The names of one code base.

    Attributes:
        family (str): ``'PVT'``, ``'ViT'``, ...
        name (str): Whose names.
        mark (str | tuple[str, ...]): Pattern of an entry by which the layout
            is known; or of several, all of which it has.
        rows (tuple): Parts of their names and what they are in ours, to be
            replaced in this order, or backwards the other way; after ``'^'``
            at the start of a name alone. A third member says how the values
            differ: our q and kv are one (``'qkv'``), our linear layer is a
            1 x 1 convolution (``'conv'``), or may be one in their files
            (``'maybe conv'``), the channels of four tokens, side by side in
            ours, are unfolded (``'unfold'``), or our sides of patches are
            numbers of patches along a region (``'splits'``).
        no_place (str): Pattern of our entries that it has no place for.
        container (str, optional): Key under which its files hold the
            weights. Defaults to None: they hold nothing else.
    """

    family: str
    name: str
    mark: str | tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    no_place: str = ''
    container: str | None = None

    def __str__(self) -> str:
        return f'{self.name} {self.family}'


def unwrap(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Find the backbone's weights in what a file holds.

    That is a state dict; or one inside a training's state, of a parallel
    wrapper (``module.``), or of a model with its backbone below one of
    ``PREFIXES``. DINOv2's training numbers blocks in chunks, which go.

    Returns:
        tuple[dict, list[str]]: The backbone's entries, and the names of the
        rest of the model.
    """
    for key in ('state_dict', 'model', 'teacher'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    weights = {
        re.sub(r'\bblocks\.\d+\.(?=\d+\.)', 'blocks.', name): value
        for key, value in checkpoint.items()
        for name in [key.removeprefix('module.')]
    }
    for prefix in (f'{name}.' for name in PREFIXES):
        names = [key for key in weights if key.startswith(prefix)]
        if names:
            rest = [key for key in weights if not key.startswith(prefix)]
            return {key[len(prefix) :]: weights[key] for key in names}, rest
    return weights, []


def recognise(
    names: Collection[str], layouts: Iterable[Layout]
) -> Layout | None:
    """The first layout whose marks are among the names of entries."""
    for layout in layouts:
        marks = layout.mark
        marks = [marks] if isinstance(marks, str) else marks
        if all(any(re.fullmatch(m, name) for name in names) for m in marks):
            return layout
    return None


def _rename(key: str, rows: Iterable[Sequence[str]]) -> tuple[str, str]:
    """Replace parts of a name; also return how the values differ."""
    how = ''
    for source, target, *change in rows:
        at_start = source.startswith('^')
        source, target = source.removeprefix('^'), target.removeprefix('^')
        if key.startswith(source) if at_start else source in key:
            key, how = key.replace(source, target), ''.join(change) or how
    return key, how


def to_ours(state: State, layout: Layout) -> State:
    """Translate names and shapes to ours; what has no row stays as it is."""
    ours = {}
    for key, value in state.items():
        name, how = _rename(key, layout.rows)
        if how == 'qkv' and value.dim():  # (3C, ...) -> (C, ...), (2C, ...)
            parts = value.tensor_split([len(value) // 3])
            ours[name], ours[name.replace('.q.', '.kv.')] = parts
        elif 'conv' in how and value.dim() == 4:  # (O, I, 1, 1) -> (O, I)
            ours[name] = value.flatten(1)
        elif how == 'unfold':  # (..., C * 4) -> (..., 4 * C)
            tokens = value.unflatten(-1, (-1, 4)).mT
            ours[name] = tokens[..., UNFOLDED, :].flatten(-2)
        elif how == 'splits' and value.numel():
            ours[name] = value.max() // value
        else:
            ours[name] = value
    for value in [key for key in ours if '.attn.v.' in key]:
        key = value.replace('.attn.v.', '.attn.k.')
        if key in ours:
            pair = [ours.pop(key), ours.pop(value)]
            ours[value.replace('.attn.v.', '.attn.kv.')] = torch.cat(pair)
    return ours


def from_ours(state: State, layout: Layout) -> tuple[State, list[str]]:
    """Translate our names and shapes to a layout's; inverse of ``to_ours``.

    Returns:
        tuple[dict, list[str]]: The translated entries, and the names of ours
        that the layout has no place for.
    """
    dropped = [key for key in state if re.fullmatch(layout.no_place, key)]
    tokens, last = _tokens(state)
    kept = [i for i, token in enumerate(tokens) if token not in dropped]
    if last and len(kept) < len(tokens):  # their positions go with them
        state = {
            key: value[:, [*kept, *range(len(tokens), value.shape[1])]]
            if key.endswith(last)
            else value
            for key, value in state.items()
        }
    rows = [(ours, theirs, *how) for theirs, ours, *how in layout.rows[::-1]]
    fused = any('qkv' in row for row in rows)
    if any('.attn.k.' in row for row in rows):
        state = dict(_keys_apart_from_values(state))
    theirs = {}
    for key, value in state.items():
        if key in dropped or (fused and '.attn.kv.' in key):
            continue  # the latter go with the queries
        name, how = _rename(key, rows)
        if how == 'qkv':
            value = torch.cat([value, state[key.replace('.q.', '.kv.')]])
        elif how == 'conv' and value.dim() == 2:  # (O, I) -> (O, I, 1, 1)
            value = value[..., None, None]
        elif how == 'unfold':  # (..., 4 * C) -> (..., C * 4)
            tokens = value.unflatten(-1, (4, -1))[..., UNFOLDED, :]
            value = tokens.mT.flatten(-2)
        elif how == 'splits':
            value = value.max() // value
        theirs[name] = value
    return theirs, dropped


def _keys_apart_from_values(state: State) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if '.attn.kv.' in key:
            yield from zip(
                (key.replace('.kv.', part) for part in ('.k.', '.v.')),
                value.chunk(2),
                strict=True,
            )
        else:
            yield key, value


def _tokens(state: Mapping[str, Any]) -> tuple[list[str], str]:
    """Extra tokens of weights, and the position embedding with their rows."""
    names = [key for key in state if key.startswith('pos_embed')]
    return [key for key in TOKENS if key in state], max(names, default='')


def load(backbone: nn.Module, state_dict: dict, prefix: str) -> None:
    """Put what :func:`fit` makes in the place of the entries below ``prefix``.

    For a backbone's ``_load_from_state_dict``: whatever loads it, alone or in
    a model, MMEngine or PyTorch, comes through there. Raises as :func:`fit`.
    """
    given = [key for key in state_dict if key.startswith(prefix)]
    entries = {key[len(prefix) :]: state_dict[key] for key in given}
    entries, said = fit(entries, backbone)
    for key in given:
        del state_dict[key]
    state_dict.update({prefix + key: v for key, v in entries.items()})
    print_log(f'{type(backbone).__name__} from the {said}', 'current')


def fit(state_dict: State, backbone: nn.Module) -> tuple[State, str]:
    """Bring a checkpoint of any layout to the entries of one backbone.

    Routers that it lacks start anew. Parts that no backbone has are left to
    PyTorch, which raises if it is strict, and to MMEngine, which warns.

    Args:
        state_dict (dict): What a file holds, see :func:`unwrap`.
        backbone (nn.Module): See :class:`Backbone` for what it tells:
            ``layouts``, ``arch``, ``arch_zoo``, ``in_channels``, ``unbuilt``,
            ``adopt()``, ``arguments_of()``, ``sizes_of()``,
            ``pos_embeds()``, ``routers_by_name()``, ``new_parts()``.

    Returns:
        tuple[dict, str]: The backbone's entries, and what became of the
        checkpoint's, in one line.

    Raises:
        UserError: If it is no checkpoint of this architecture: an entry is
            missing, unknown or of another shape, or granularities differ.
    """
    weights, rest = unwrap(state_dict)
    layout = _find_layout(weights, backbone)
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    strange = [key for key in weights if key not in tensors]
    ours = dict(backbone.adopt(to_ours(tensors, layout)))
    own = backbone.state_dict()
    tokens, remedy = _tokens(ours), _other_arch(ours, own, backbone)
    dropped, unknown, other, stem = _sort(ours, own, backbone)
    loaded = len(ours.keys() & own.keys()) - len(stem)
    routers = backbone.routers_by_name()
    initial, zeros = _complete(ours, own, routers | backbone.new_parts())
    initial.sort(key=lambda key: _owner(key, routers) is None)
    missing = [f'{k} {tuple(own[k].shape)}' for k in own if k not in ours]
    problems = [
        f'{verb} {len(names)} {what} ({_some(names, 20)})'
        for verb, names, what in (
            ('lacks', missing, 'of its entries'),
            ('holds', strange + unknown, 'unknown'),
            ('has', other, 'of other shapes'),
        )
        if names
    ]
    if problems:
        raise UserError(
            f'the checkpoint ({layout} layout) does not fit the backbone '
            f'{type(backbone).__name__}: it {" and ".join(problems)}; '
            + _remedy(missing, unknown, other, remedy, backbone)
        )
    resized, grids = _resize(ours, own, backbone.pos_embeds(), *tokens)
    for key in stem:
        ours[key] = own[key]
        message = 'stays as it is, and is to be trained: the checkpoint is not'
        message = f'{key} {message} of in_channels={backbone.in_channels}'
        print_log(message, 'current', WARNING)
    said = [f'{loaded} entries loaded']
    said += [f'resized: {", ".join(resized)}'] if resized else []
    for what, names in {
        'left at their initial values': initial,
        'left at its initial value, of other channels': stem,
        'set to 0, biases that it lacks': zeros,
        'dropped, not of the backbone': rest,
        **{f'dropped, {reason}': names for reason, names in dropped.items()},
    }.items():
        said += [f'{len(names)} {what}: {_some(names, 3)}'] if names else []
    if grids:
        said.append(f'its positions were taken for {", ".join(grids)}')
    return ours, f'{layout} layout: {"; ".join(said)}'


def _some(names: Sequence[str], most: int) -> str:
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def _find_layout(weights: Mapping[str, Any], backbone: nn.Module) -> Layout:
    name, known = type(backbone).__name__, backbone.layouts
    layout = recognise(weights, known)
    if layout:
        return layout
    if not weights:
        raise UserError(
            f'the checkpoint holds nothing for the backbone {name}; '
            'the weights of a backbone alone go into its init_cfg: '
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    if not known:  # of an architecture of one's own
        return Layout(name, 'mmdge', '')
    for other, kind in MODELS.module_dict.items():
        layout = recognise(weights, getattr(kind, 'layouts', ()))
        if layout:
            raise UserError(
                f'the checkpoint holds a {layout.family} ({layout.name} '
                f'layout), but the backbone is {name}; use the weights of a '
                f"{known[-1].family}, or set type='mmdge.{other}'"
            )
    raise UserError(
        f'the checkpoint holds no weights for the backbone {name} but '
        f'{_some(list(weights), 3)}; the layouts known are '
        + ', '.join(map(str, known))
    )


def _other_arch(ours: State, own: State, backbone: nn.Module) -> str:
    """How to get sizes and parts of weights, if not the backbone's."""
    sizes = backbone.sizes_of(ours)

    def fits(arch: Mapping[str, Any]) -> bool:
        here = {k: torch.tensor(arch[k]).flatten().tolist() for k in sizes}
        # Stages that the weights don't have don't count.
        return all(here[k][: len(size)] == size for k, size in sizes.items())

    parts, here = map(backbone.arguments_of, (ours, own))
    changed = {k: v for k, v in parts.items() if v != here.get(k)}
    changes = ', '.join(f'{k}={v!r}' for k, v in changed.items())
    zoo = {
        repr(name): {**getattr(backbone, 'arch_defaults', {}), **arch}
        for name, arch in backbone.arch_zoo.items()
    }
    known = [name for name, arch in zoo.items() if fits(arch)]
    whole = [
        name
        for name in known
        if all(zoo[name].get(k, v) == v for k, v in parts.items())
    ]
    if fits(backbone.arch):
        as_in = ''
        if whole and changed.keys() & backbone.arch.keys():
            as_in = f', as arch={whole[0]} has it'
        return f'set {changes}{as_in}' if changes else ''
    told = {k: tuple(v) if len(v) > 1 else v[0] for k, v in sizes.items()}
    told = ', '.join(f'{key}={size}' for key, size in told.items())
    arch = [*whole, *known, f'dict({told}, ...)'][0]
    changes = f', {changes}' if changes else ''
    return f'its sizes are {told}: set arch={arch}{changes}'


def _owner(key: str, routers: Iterable[str]) -> str | None:
    return next((r for r in routers if key.startswith(f'{r}.')), None)


def _sort(
    ours: State, own: State, backbone: nn.Module
) -> tuple[dict[str, list[str]], list[str], list[str], list[str]]:
    """Take out what is of no use here.

    Returns:
        tuple: Names of what was taken out, by reason; of what is unknown; of
        what has another shape; and of what is for other input channels.
    """
    routers, grids = backbone.routers_by_name(), backbone.pos_embeds()
    new = backbone.new_parts()
    learned = {name for name, _ in backbone.named_parameters()}
    parts = {key.partition('.')[0] for key in own}
    # A router of which one entry is another's is another's as a whole.
    foreign = {_owner(k, routers) for k in ours.keys() - own.keys()} - {None}
    dropped, unknown, other, stem = {}, [], [], []
    for key, value in list(ours.items()):
        owner, part = _owner(key, routers), key.partition('.')[0]
        if key in own and owner not in foreign:
            if key.endswith('.sides'):
                _check_sides(key, value, own[key])
            theirs, here = tuple(value.shape), tuple(own[key].shape)
            # Whether a buffer fits is the router's own affair.
            fits = theirs == here or (owner and key not in learned)
            alike = theirs[:1] + theirs[2:] == here[:1] + here[2:]
            if fits or (alike and key in grids):
                continue  # positions are resized later
            if alike and len(here) == 4 and here[1] == backbone.in_channels:
                stem.append(key)
            elif part in new and re.fullmatch(HEAD, key):
                dropped.setdefault('of other classes', []).append(key)
                del ours[key]
            else:
                other.append(f'{key} {theirs} in place of {here}')
            continue
        reasons = [why for p, why in UNUSED.items() if re.fullmatch(p, key)]
        router = re.fullmatch(ROUTER, key)
        at = router and router[1]  # a block; None: of the whole backbone
        if owner or (
            router and (not at or any(k.startswith(f'{at}.') for k in own))
        ):
            reasons = ["another routing's"]
        if key.startswith(backbone.unbuilt):
            reasons = ['after the last output']
        if reasons:
            dropped.setdefault(reasons[0], []).append(key)
            del ours[key]
        elif part in parts or part == key or re.fullmatch(NEEDED, key):
            unknown.append(key)
    return dropped, unknown, other, stem


def _check_sides(key: str, theirs: Tensor, here: Tensor) -> None:
    theirs, here = (tuple(t.flatten().tolist()) for t in (theirs, here))
    if theirs != here:
        raise UserError(
            'the routers of the checkpoint choose among the granularities '
            f'{theirs} ({key}), but those of the backbone among {here}; set '
            f'granularities={theirs}, or another routing'
        )


def _complete(
    ours: State, own: State, parts: Mapping[str, nn.Module]
) -> tuple[list[str], list[str]]:
    """Add parts, e.g. routers, and biases that weights lack; return names."""
    fresh, begun = {}, set()
    # Alike in all processes, which nothing brings together after loading.
    with torch.random.fork_rng([]):
        # Not torch.manual_seed, which reaches other devices too.
        torch.default_generator.manual_seed(0)
        for path, part in parts.items():
            part = copy.deepcopy(part).cpu()
            part.reset_parameters()
            fresh |= part.state_dict(prefix=f'{path}.')
            learned = {f'{path}.{name}' for name, _ in part.named_parameters()}
            if learned & ours.keys():
                begun |= learned
    modules = {key.rpartition('.')[0] for key in ours}
    kinds = {re.sub(r'\d+', '*', key) for key in ours}
    initial, zeros = [], []
    for key in [key for key in own if key not in ours]:
        module, _, name = key.rpartition('.')
        if key in fresh:
            # What a part learns is all there or none, and so are a module's
            # entries, but older ones' sides.
            lacking = module in modules or key in begun
            if name == 'sides' or not lacking:
                ours[key] = fresh[key]
                initial.append(key)
        elif (
            name == 'bias'
            and f'{module}.weight' in ours
            and re.sub(r'\d+', '*', key) not in kinds  # no block has it
        ):
            ours[key] = torch.zeros_like(own[key])
            zeros.append(key)
    return initial, zeros


def _remedy(
    missing: list[str],
    unknown: list[str],
    other: list[str],
    arguments_to_set: str,
    backbone: nn.Module,
) -> str:
    if any(re.fullmatch(NEEDED, key) for key in unknown):
        return (
            'it is another kind of transformer, with positions or norms that '
            'this one lacks: use weights of this architecture'
        )
    if arguments_to_set:
        return arguments_to_set
    arguments = {
        argument
        for kind in type(backbone).__mro__
        for argument in signature(kind.__init__).parameters
    }
    for entry, switch in SWITCHES.items():
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
    ours: State,
    own: State,
    pos_embeds: Mapping[str, tuple[tuple[int, int], str]],
    tokens: Sequence[str],
    last: str,
) -> tuple[list[str], list[str]]:
    """Bring position embeddings to the backbone's extra tokens and grid.

    No file tells its grid. As many positions as ``pretrain_img_size`` gives
    are taken to have its grid, be it that of another embedding, from which
    this one was derived; others must be a square. Returns what was
    resized, and the grids that were read.
    """
    resized, grids = [], []
    known = [tuple(size) for size, _ in pos_embeds.values()]
    for key, (size, mode) in pos_embeds.items():
        pos, size = ours[key], tuple(size)
        extra = len(tokens) if key.endswith(last) else 0
        kept = own[key].shape[1] - math.prod(size)
        num = pos.shape[1] - extra
        square = (math.isqrt(max(num, 0)),) * 2
        of_all = (grid for grid in [size, *known] if math.prod(grid) == num)
        source = next(of_all, square)
        if num < 1 or math.prod(source) != num:
            raise UserError(
                f'the checkpoint has {key} {tuple(pos.shape)} in place of '
                f'{tuple(own[key].shape)}, and {num} positions are no square; '
                'set pretrain_img_size=(height, width) to that of its training'
            )
        grids.append('x'.join(map(str, source)))
        if source != size:
            resized.append(f'{key} from {grids[-1]} to {size[0]}x{size[1]}')
        if source != size or extra != kept:
            extras, grid = pos.tensor_split([extra], 1)
            # float: bicubic has no half precision everywhere
            grid = resize_pos_embed(grid.float(), source, size, mode)
            ours[key] = torch.cat([extras[:, :kept].float(), grid], 1)
    return resized, grids
