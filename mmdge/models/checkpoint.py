"""What of a checkpoint a backbone takes, and what is in the way.

:func:`fit` is a pure function: from a state dict of any known layout and what
a backbone needs, to the backbone's entries and a report.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmdge.utils import UserError

from .layers import resize_pos_embed
from .layouts import (
    HEAD,
    LAYOUTS,
    ROUTER,
    Layout,
    recognise,
    to_ours,
    unwrap,
)

# Entries that are named before they are only counted, in log and errors.
_LOGGED, _LISTED = 3, 20


@dataclass(frozen=True)
class Wanted:
    """What a backbone needs.

    Attributes:
        name (str): Of the backbone, for messages.
        family (str): ``'PVT'`` or ``'DeiT'``.
        arch (Mapping): Its ``num_layers`` and ``embed_dims``, built or not.
        arch_zoo (Mapping): The same of each architecture with a name.
        state (Mapping[str, Tensor]): Its own entries.
        unbuilt (tuple[str, ...]): How the entries begin that it would have
            as well if its last output were the last there is.
        pos_sizes (Mapping): Height and width of each position embedding.
        pos_mode (str): How they are resized, see :func:`resize_pos_embed`.
        routers (Mapping): Name and granularities of each router.
        remembered (frozenset[str]): The routers' entries that no optimizer
            learns; whether they fit is the router's own affair.
    """

    name: str
    family: str
    arch: Mapping[str, Any]
    arch_zoo: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Tensor]
    unbuilt: tuple[str, ...]
    pos_sizes: Mapping[str, tuple[int, int]]
    pos_mode: str
    routers: Mapping[str, Sequence[int]]
    remembered: frozenset[str]

    def router_of(self, key: str) -> str | None:
        """The name of the router that an entry belongs to."""
        router = key.partition('.router.')[0] + '.router'
        return router if router in self.routers else None


@dataclass
class Report:
    """What became of a checkpoint's entries.

    Attributes:
        layout (Layout): Whose names they had.
        loaded (int): Number of the backbone's entries that they fill.
        resized (list[str]): Position embeddings that changed their size.
        initial (list[str]): The backbone's entries that they lack, all of
            them routers'.
        dropped (dict[str, list[str]]): Entries not used, by reason.
    """

    layout: Layout
    loaded: int = 0
    resized: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f'{self.loaded} entries loaded']
        if self.resized:
            parts.append(f'resized: {", ".join(self.resized)}')
        if self.initial:
            parts.append(
                f'{len(self.initial)} left at their initial values, the '
                f"routers': {_some(self.initial)}"
            )
        for reason, keys in self.dropped.items():
            parts.append(f'{len(keys)} dropped, {reason}: {_some(keys)}')
        return f'{_name(self.layout)} layout: {"; ".join(parts)}'


def fit(
    checkpoint: Mapping[str, Any], wanted: Wanted
) -> tuple[dict[str, Tensor], Report]:
    """Bring a checkpoint of any layout to the entries of one backbone.

    Args:
        checkpoint (Mapping): What a file holds, see :func:`unwrap`.
        wanted (Wanted): What the backbone needs.

    Returns:
        tuple[dict, Report]: The backbone's entries, without those of routers
        that the checkpoint doesn't know; and what became of the rest.

    Raises:
        UserError: If it is no checkpoint of this architecture: an entry is
            missing, unknown or of another shape, or granularities differ.
    """
    weights, rest = unwrap(checkpoint)
    layout = _check_layout(list(weights), wanted)
    report = Report(layout)
    if rest:
        report.dropped['not of the backbone'] = rest
    ours = to_ours(weights, layout)
    sizes = sizes_of(ours)
    _drop(ours, wanted, report)
    _resize(ours, wanted, report)
    report.loaded = len(ours)
    # Of a module's entries all must be there, or none.
    known = {key.rpartition('.')[0] for key in ours}
    for key in wanted.state:
        module = key.rpartition('.')[0]
        if key in ours or not wanted.router_of(key):
            continue
        if key.endswith('.sides') and {module, f'{module}.gate'} & known:
            ours[key] = wanted.state[key]  # not told: taken to be the same
        elif module not in known:
            report.initial.append(key)
    _check_entries(ours, wanted, report, sizes)
    return ours, report


def sizes_of(ours: Mapping[str, Any]) -> dict[str, Any]:
    """``num_layers`` and ``embed_dims`` of weights; a tuple has its stages."""
    blocks = {
        found.groups()
        for key in ours
        if (found := re.match(r'blocks?(\d*)\.(\d+)\.', key))
    }
    depths = Counter(stage for stage, _ in blocks)
    shapes = [
        getattr(ours.get(f'patch_embed{stage}.proj.weight'), 'shape', ())
        for stage in sorted(depths)
    ]
    sizes = {'num_layers': tuple(depths[stage] for stage in sorted(depths))}
    if all(shapes):
        sizes['embed_dims'] = tuple(shape[0] for shape in shapes)
    if '' in depths:  # DeiT is one stage, without a number
        return {key: values[0] for key, values in sizes.items() if values}
    return sizes


def _check_layout(names: list[str], wanted: Wanted) -> Layout:
    if not names:
        raise UserError(
            f'the checkpoint holds nothing for the backbone {wanted.name}; '
            'the weights of a backbone alone go into its init_cfg: '
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    layout = recognise(names)
    if layout is None:
        raise UserError(
            f'the checkpoint holds no weights for the backbone {wanted.name} '
            f'but {_some(names)}; the layouts known are '
            + ', '.join(_name(layout) for layout in LAYOUTS)
        )
    if layout.family != wanted.family:
        raise UserError(
            f'the checkpoint holds a {layout.family} ({layout.name} layout), '
            f'but the backbone is {wanted.name}; use the weights of a '
            f"{wanted.family}, or set type='mmdge.DGE{layout.family}'"
        )
    return layout


def _drop(ours: dict[str, Any], wanted: Wanted, report: Report) -> None:
    """Take out what this backbone has no use for, and say why."""
    # A router of which one entry is another's is another's as a whole.
    foreign = {
        wanted.router_of(key) for key in ours if key not in wanted.state
    } - {None}
    for key in list(ours):
        if wanted.router_of(key) in foreign:
            reason = "another routing's"
        elif key in wanted.state:
            if key.endswith('.router.sides'):
                _check_granularities(key, ours[key], wanted)
            continue
        elif key.startswith(wanted.unbuilt):
            reason = 'after the last output'
        elif re.fullmatch(HEAD, key):
            reason = 'the classification head'
        elif key.startswith('norm.'):
            reason = 'the final norm, unused here'
        elif key in ('cls_token', 'dist_token'):
            reason = 'an extra token, unused here'
        elif re.fullmatch(ROUTER, key) and _has_block(key, wanted):
            reason = "another routing's"
        else:
            continue  # unknown: reported below
        report.dropped.setdefault(reason, []).append(key)
        del ours[key]


def _has_block(key: str, wanted: Wanted) -> bool:
    block = re.match(r'blocks?\d*\.\d+\.', key)
    return block is not None and f'{block[0]}norm1.weight' in wanted.state


def _check_granularities(key: str, sides: Any, wanted: Wanted) -> None:
    """Raise unless a router chose among what it chooses among here."""
    theirs = tuple(torch.as_tensor(sides).flatten().tolist())
    here = tuple(wanted.routers[key.removesuffix('.sides')])
    if theirs != here:
        raise UserError(
            f'the routers of the checkpoint choose among the granularities '
            f'{theirs} ({key}), but those of {wanted.name} among {here}; set '
            f'granularities={theirs}, or another routing'
        )


def _resize(ours: dict[str, Any], wanted: Wanted, report: Report) -> None:
    """Bring position embeddings to the backbone's extra tokens and size."""
    for key, size in wanted.pos_sizes.items():
        pos, own = ours.get(key), wanted.state.get(key)
        if not isinstance(pos, Tensor) or pos.dim() != 3 or own is None:
            continue  # reported below
        side = math.isqrt(pos.shape[1])
        extra, grid = pos.tensor_split([pos.shape[1] - side**2], 1)
        num_extra = own.shape[1] - size[0] * size[1]
        is_square = side > 0 and num_extra <= extra.shape[1] <= 2
        if pos.shape == own.shape or not is_square:
            continue
        # float: bicubic has no half precision everywhere
        grid = resize_pos_embed(
            grid.float(), (side, side), size, wanted.pos_mode
        )
        fitted = torch.cat([extra[:, :num_extra].float(), grid], 1)
        if fitted.shape == own.shape:
            ours[key] = fitted
            if (side, side) != tuple(size):
                report.resized.append(
                    f'{key} from {side}x{side} to {size[0]}x{size[1]}'
                )


def _check_entries(
    ours: Mapping[str, Any],
    wanted: Wanted,
    report: Report,
    sizes: Mapping[str, Any],
) -> None:
    """Raise unless the entries are what the backbone needs."""
    missing = [
        f'{key} {tuple(value.shape)}'
        for key, value in wanted.state.items()
        if key not in ours and key not in report.initial
    ]
    unknown, other = [], []
    for key, value in ours.items():
        own = wanted.state.get(key)
        if own is None or not isinstance(value, Tensor):
            unknown.append(key)
        elif value.shape != own.shape and key not in wanted.remembered:
            other.append(
                f'{key} {tuple(value.shape)} in place of {tuple(own.shape)}'
            )
    problems = []
    if missing:
        problems.append(
            f'lacks {len(missing)} of its entries ({_some(missing, _LISTED)})'
        )
    if unknown:
        problems.append(
            f'holds {len(unknown)} unknown ({_some(unknown, _LISTED)})'
        )
    if other:
        problems.append(
            f'has {len(other)} of other shapes ({_some(other, _LISTED)})'
        )
    if problems:
        raise UserError(
            f'the checkpoint ({_name(report.layout)} layout) does not fit the '
            f'backbone {wanted.name}: it {" and ".join(problems)}; '
            + _remedy(missing, other, wanted, sizes)
        )


def _remedy(
    missing: Sequence[str],
    other: Sequence[str],
    wanted: Wanted,
    sizes: Mapping[str, Any],
) -> str:
    if any(_differ(sizes[key], wanted.arch[key]) for key in sizes):
        known = [n for n, arch in wanted.arch_zoo.items() if arch == sizes]
        listed = ', '.join(f'{key}={value}' for key, value in sizes.items())
        arch = repr(known[0]) if known else f'dict({listed}, ...)'
        return f'its sizes are {listed}: set arch={arch}'
    if any(key.startswith('cls_token') for key in missing):
        return 'set with_cls_token=False'
    if any(key.startswith('dist_token') for key in missing):
        return 'set distilled=False'
    if any(re.match(ROUTER, key) for key in other):
        return 'set the granularities of its training, or another routing'
    return (
        'use weights of this architecture, or change the arguments of the '
        'backbone'
    )


def _differ(theirs: Any, here: Any) -> bool:
    """Whether sizes differ; stages that aren't there don't count."""
    if isinstance(theirs, tuple):
        return theirs != here[: len(theirs)]
    return theirs != here


def _name(layout: Layout) -> str:
    return f'{layout.name} {layout.family}'


def _some(keys: Sequence[str], most: int = _LOGGED) -> str:
    """The first few of many."""
    return ', '.join(keys[:most]) + (', ...' if len(keys) > most else '')
