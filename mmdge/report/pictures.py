"""The granularity maps of runs, small enough for a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2

from .html import text
from .records import Picture, Run

MOST_PER_RUN = 8
MOST_PER_PAGE = 24
WIDTH = 800
QUALITY = 70


def gallery(runs: Sequence[Run], problems: list[str]) -> str:
    """The newest pictures of each run, which grow when they are clicked.

    Args:
        runs (Sequence[Run]): Those without a picture are left out.
        problems (list[str]): To which those are added that can't be read.

    Returns:
        str: HTML; empty if there is no picture.
    """
    shown = [run for run in runs if run.pictures]
    if not shown:
        return ''
    oldest = sorted(run.date for run in shown)[-MOST_PER_PAGE:][0]
    shown = [run for run in shown if run.date >= oldest]
    most = min(MOST_PER_RUN, max(1, MOST_PER_PAGE // len(shown)))
    shots = ''.join(
        _shot(run, picture, problems)
        for run in shown
        for picture in run.pictures[-most:]
    )
    return (
        f'<p class="note">The last {most} of each run since {oldest}. '
        'A click enlarges.</p>'
        f'<div class="shots">{shots}</div>'
    )


def _shot(run: Run, picture: Picture, problems: list[str]) -> str:
    data = encode(picture)
    if data is None:
        problems.append(f'{picture.name}: no picture that can be read')
        return ''
    # A test has no iteration, and MMEngine calls that 0.
    step = f'iteration {picture.step}' if picture.step > 0 else run.kind
    caption = text(f'{run.name}, {step}')
    return (
        f'<details class="shot"><summary><img alt="{caption}" '
        f'src="data:image/jpeg;base64,{data}">{caption}</summary></details>'
    )


def encode(picture: Picture) -> str | None:
    """A picture as a small JPEG in base64; None if it can't be read."""
    try:
        pixels = cv2.imread(str(picture.path), cv2.IMREAD_COLOR)
    except cv2.error:  # too large
        return None
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    if width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    return base64.b64encode(cv2.imencode('.jpg', pixels, quality)[1]).decode()
