"""States of the random numbers of a process, to be saved and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def get_random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's random numbers.

    Returns:
        dict: Tensors and plain values alone, so that a checkpoint that holds
        them can be read without running code. ``'cuda'``, of the current
        device, is there where CUDA is in use.
    """
    _, keys, position, has_gauss, gauss = np.random.get_state()
    states = dict(
        python=random.getstate(),
        # PyTorch's tensors have no unsigned integers of 32 bits everywhere.
        numpy=(
            torch.from_numpy(keys.astype(np.int64)),
            position,
            has_gauss,
            gauss,
        ),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what :func:`get_random_states` returned.

    Args:
        states (dict): May have been saved and loaded in between.
    """
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers), gauss))
    keys, *others = states['numpy']
    np.random.set_state(
        ('MT19937', keys.cpu().numpy().astype(np.uint32), *others)
    )
    # A checkpoint that is loaded to a GPU moves these along.
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())
