"""Draw the procedural data set *shapes* (see mmdge.datasets.shapes)."""

import argparse

from mmengine import track_iter_progress

from mmdge.datasets import write_shapes


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--root', default='data/shapes', help='folder to write to')
    add('--num-train', type=int, default=900, help='training scenes')
    add('--num-val', type=int, default=100, help='validation scenes')
    add('--size', type=int, default=256, help='height and width in px')
    add(
        '--num-objects',
        type=int,
        nargs=2,
        default=(1, 8),
        metavar=('FEWEST', 'MOST'),
        help='objects of a scene',
    )
    add('--seed', type=int, default=0)
    add(
        '--overwrite',
        action='store_true',
        help='draw again over a data set already there',
    )
    return parser.parse_args()


def main() -> None:
    """Draw the data set, or say that it is there already."""
    args = parse_args()
    try:
        drawn = write_shapes(**vars(args), progress=track_iter_progress)
    except ValueError as error:
        raise SystemExit(f'make_shapes.py: {error}') from None
    if drawn:
        print()  # the progress bar leaves its line open
    verb = 'wrote' if drawn else 'found'
    print(
        f'{verb} {args.num_train} train and {args.num_val} val scenes of '
        f'{args.size} px (seed {args.seed}) in {args.root}'
    )


if __name__ == '__main__':
    main()
