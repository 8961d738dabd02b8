"""The tables of docs/results.md, made from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from plan import BUDGET, SWEEP
from rows import Row, Rows, points, shown, value

NAMES = {
    'static': 'static checkpoint',
    'dense': 'dense twin',
    'error': '**error** (ours)',
    'error-many': '**error**, for many budgets',
    'oracle': 'oracle (true errors)',
    'shuffled': 'error, shuffled in the image',
    'variance': 'variance, fixed shares',
    'learned': "the paper's",
    'uniform': 'uniform',
    'random': 'random',
    'uniform-mid': 'uniform, no 4 x 4',
    'random-mid': 'random, no 4 x 4',
    'smaller': 'smaller static model',
}


# Of the same FLOPs, which know nothing of what is where.
CONTROLS = ('random', 'uniform', 'random-mid', 'uniform-mid')


def accuracy(rows: Sequence[Row]) -> str:
    """Mean, and the range over the seeds."""
    values = [points(row) for row in rows]
    low, high = (shown(end(values), 1) for end in (min, max))
    spread = f' ({low}-{high})' if values[1:] else ''
    return f'{shown(mean(values), 1)}{spread}'


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; numbers to the right."""
    words = ('setting', 'routing', 'checkpoint', 'difference in points')
    align = ['---' if name in words else '---:' for name in head]
    lines = [head, align, *body]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def pairs(found: Sequence[Row], base: Sequence[Row]) -> dict[int, float]:
    """Differences of the seeds that both have."""
    own = {row['seed']: points(row) for row in found}
    return {
        row['seed']: own[row['seed']] - points(row)
        for row in base
        if row['seed'] in own
    }


def difference(paired: dict[int, float]) -> str:
    """Mean of the differences, and their range."""
    if not paired:
        return '-'
    middle, low, high = (
        shown(of(paired.values()), 1, '+') for of in (mean, min, max)
    )
    spread = f' ({low} to {high})' if len(paired) > 1 else ''
    return f'{middle}{spread}'


def compare(rows: Rows, arms: Sequence[tuple], reference: tuple) -> str:
    """Arms of every setting side by side, each against a reference."""
    head = (
        'setting',
        'routing',
        'accuracy',
        'difference',
        'GFLOPs',
        'p95',
        'ratio',
        'std',
        'seeds',
    )
    body = []
    for setting in rows.settings(*reference[:2]):
        base = rows.of(setting, *reference)
        for phase, arm, budget, asked in arms:
            found = rows.of(setting, phase, arm, budget, asked)
            if not found:
                continue
            cells = [
                f'{value(found, f"backbone/{key}"):.3f}'
                for key in (
                    'GFLOPs',
                    'GFLOPs_p95',
                    'FLOPs_ratio',
                    'FLOPs_ratio_std',
                )
            ]
            if arm == 'smaller':  # is its own dense twin
                cells[2:] = ['-', '-']
            name = NAMES[arm]
            if arm == 'learned' and asked is None:
                name += ', at no price'
            if (phase, arm) == ('scratch', 'error'):
                name += ', untrained'
            if (phase, arm) == ('untrained', 'variance'):
                # Until it is trained it has no thresholds for all.
                name += ' of each image'
            body.append(
                (
                    setting,
                    name,
                    accuracy(found),
                    difference(pairs(found, base)),
                    *cells,
                    str(len(found)),
                )
            )
    return table(head, body)


def untrained(rows: Rows) -> str:
    """The static checkpoint, and what it does as it is."""
    static = ('untrained', 'static', None, None)
    arms = ('error', 'oracle', 'shuffled', 'variance')
    arms += ('random-mid', 'uniform-mid', 'random')
    return compare(
        rows,
        [static, *(('untrained', arm, BUDGET, BUDGET) for arm in arms)],
        static,
    )


def finetuned(rows: Rows) -> str:
    """All arms at the same budget and schedule."""
    dense = ('finetuned', 'dense', None, None)
    tuned = (
        'error',
        'error-many',
        'variance',
        'learned',
        'shuffled',
        'uniform-mid',
        'random-mid',
        'uniform',
        'random',
    )
    return compare(
        rows,
        [
            dense,
            *(('finetuned', arm, BUDGET, BUDGET) for arm in tuned),
            ('finetuned', 'learned', BUDGET, None),
        ],
        dense,
    )


def scratch(rows: Rows) -> str:
    """From scratch, for as long as a static model and its fine-tuning."""
    dense = ('scratch', 'dense', None, None)
    others = [
        ('error', BUDGET, BUDGET),
        ('learned', BUDGET, BUDGET),
        ('learned', BUDGET, None),
        ('random-mid', BUDGET, BUDGET),
        ('smaller', BUDGET, None),
    ]
    return compare(
        rows, [dense, *(('scratch', *arm) for arm in others)], dense
    )


def budgets(rows: Rows) -> str:
    """One checkpoint at other budgets, and those trained for them."""
    head = ('setting', 'checkpoint', *(f'{r:g}' for r in SWEEP), 'seeds')
    body = []
    for setting in rows.settings('finetuned', 'error'):
        for name, phase, arm, budget in (
            ('untrained', 'untrained', 'error', BUDGET),
            ('trained at .5', 'finetuned', 'error', BUDGET),
            ('trained at .35, .5, .7', 'finetuned', 'error-many', BUDGET),
            ('trained at .35', 'finetuned', 'error', 0.35),
            ('trained at .7', 'finetuned', 'error', 0.7),
            ('uniform, no 4 x 4', 'finetuned', 'uniform-mid', None),
        ):
            found = [
                rows.of(setting, phase, arm, budget or asked, asked)
                for asked in SWEEP
            ]
            if any(found):
                cells = [accuracy(rows) if rows else '' for rows in found]
                seeds = str(min(map(len, filter(None, found))))
                body.append((setting, name, *cells, seeds))
    return table(head, body)


def calibration(rows: Rows) -> str:
    """What was asked for and what the validation set took."""
    head = ('setting', *(f'{r:g}' for r in SWEEP), 'furthest', 'seeds')
    body = []
    for setting in rows.settings('finetuned', 'error'):
        found = [
            rows.of(setting, 'finetuned', 'error', asked=r) for r in SWEEP
        ]
        if not all(found):
            continue
        spent = [value(rows, 'backbone/FLOPs_ratio') for rows in found]
        furthest = max(
            abs(row['metrics']['backbone/FLOPs_ratio'] - row['asked'])
            for rows in found
            for row in rows
        )
        cells = [f'{ratio:.3f}' for ratio in spent]
        seeds = str(min(map(len, found)))
        body.append((setting, *cells, f'{furthest:.3f}', seeds))
    return table(head, body)


def seconds(rows: Rows) -> str:
    """What the FLOPs are in time and memory."""
    head = (
        'setting',
        'routing',
        'ratio',
        'ms',
        'quartiles',
        'of dense',
        'ms in a batch',
        'of dense',
        'MB',
    )
    flops, body = 'backbone/GFLOPs', []
    for setting in rows.settings('time', 'dense'):
        (dense,) = rows.of(setting, 'time', 'dense', None, None)
        for arm in (
            ('dense', None, None),
            *(('error', BUDGET, ratio) for ratio in SWEEP),
            ('smaller', BUDGET, None),
        ):
            for row in rows.of(setting, 'time', *arm):
                spent, own = dense['metrics'], row['metrics']
                body.append(
                    (
                        setting,
                        NAMES[arm[0]],
                        f'{own[flops] / spent[flops]:.3f}',
                        f'{row["value"]:.1f}',
                        f'{own["lower"]:.1f}-{own["upper"]:.1f}',
                        f'{row["value"] / dense["value"]:.3f}',
                        f'{own["ms_in_batch"]:.1f}',
                        f'{own["ms_in_batch"] / spent["ms_in_batch"]:.3f}',
                        f'{own["MB"]:.1f}',
                    )
                )
    return table(head, body)


def content(rows: Rows) -> str:
    """Does the ratio follow what is in the image?"""
    kinds = ('objects', 'area', 'edges', 'classes')
    head = ('setting', 'routing', 'ratio', 'std', *kinds, 'seeds')
    body = []
    for setting in rows.settings('finetuned', 'error'):
        for arm, asked in (
            ('error', BUDGET),
            ('variance', BUDGET),
            ('learned', BUDGET),
            ('learned', None),
            ('random', BUDGET),
        ):
            found = rows.of(setting, 'finetuned', arm, asked=asked)
            if not found:
                continue
            name = NAMES[arm] + ', at no price' * (asked is None)
            cells = [
                f'{value(found, f"backbone/FLOPs_ratio{end}"):.3f}'
                for end in ('', '_std')
            ]
            for kind in kinds:
                key = f'content/{kind}_corr'
                known = key in found[0]['metrics']
                cells.append(f'{value(found, key):.2f}' if known else '')
            body.append((setting, name, *cells, str(len(found))))
    return table(head, body)


def verdicts(rows: Rows) -> str:
    """The questions of the study, and the answer of each setting."""
    head = ('difference in points', *rows.settings('untrained', 'static'))
    static = ('untrained', 'static', None, None)
    dense = ('finetuned', 'dense', None, None)
    error = ('finetuned', 'error', BUDGET, BUDGET)
    many = ('finetuned', 'error-many', BUDGET)
    questions = {
        'error, untrained - static': (('untrained', *error[1:]), [static]),
        'error, fine-tuned - dense twin': (error, [dense]),
        'error - best control, untrained': (
            ('untrained', *error[1:]),
            [('untrained', arm, BUDGET, BUDGET) for arm in CONTROLS],
        ),
        'error - best control, fine-tuned': (
            error,
            [('finetuned', arm, BUDGET, BUDGET) for arm in CONTROLS],
        ),
        'error - variance, untrained': (
            ('untrained', *error[1:]),
            [('untrained', 'variance', BUDGET, BUDGET)],
        ),
        'error - variance, fine-tuned': (
            error,
            [('finetuned', 'variance', BUDGET, BUDGET)],
        ),
        "error - the paper's, fine-tuned": (
            error,
            [('finetuned', 'learned', BUDGET, BUDGET)],
        ),
        "error - the paper's at no price, fine-tuned": (
            error,
            [('finetuned', 'learned', BUDGET, None)],
        ),
        'for many budgets - for .35, at .35': (
            (*many, 0.35),
            [('finetuned', 'error', 0.35, 0.35)],
        ),
        'for many budgets - for .7, at .7': (
            (*many, 0.7),
            [('finetuned', 'error', 0.7, 0.7)],
        ),
    }
    body = []
    for question, (own, others) in questions.items():
        cells = []
        for setting in head[1:]:
            found = rows.of(setting, *own)
            # Seed by seed, the best of them leaves the least.
            least: dict[int, float] = {}
            for other in others:
                for seed, gap in pairs(
                    found, rows.of(setting, *other)
                ).items():
                    least[seed] = min(gap, least.get(seed, gap))
            seeds = f', n={len(least)}' if least else ''
            cells.append(difference(least) + seeds)
        body.append((question, *cells))
    return table(head, body)


TABLES: dict[str, Callable[[Rows], str]] = {
    made.__name__: made
    for made in (
        verdicts,
        untrained,
        finetuned,
        scratch,
        budgets,
        calibration,
        seconds,
        content,
    )
}
