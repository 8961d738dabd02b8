"""What several tools ask for on the command line."""

import argparse
import math


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no positive number')
    return int(text)


def positive_number(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is no positive number')
    return value


def ratio(text: str) -> float:
    """A ratio of FLOPs between 0 and 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no ratio of FLOPs, a number between 0 and 1'
        )
    return value


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--num-images`` and ``--split``."""
    parser.add_argument(
        '--num-images',
        type=positive,
        default=128,
        help='images to find the price on, at random; the more, the closer '
        'to the ratio of the whole set (default: 128)',
    )
    parser.add_argument(
        '--split',
        choices=['train', 'val'],
        default='train',
        help='whose images; no labels are used (default: train)',
    )
