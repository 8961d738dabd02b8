"""Random numbers of a process: saved, put back, and those of its loaders."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from mmdge.registry import FUNCTIONS


def get_random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's random numbers.

    Returns:
        dict: Tensors and plain values alone, so that a checkpoint that holds
        them can be read without running code. ``'cuda'``, of the current
        device, is there where CUDA is in use.
    """
    _, keys, *others = np.random.get_state()
    states = dict(
        python=random.getstate(),
        # PyTorch's tensors have no unsigned integers of 32 bits everywhere.
        numpy=(torch.from_numpy(keys.astype(np.int64)), *others),
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
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', keys, *others))
    # A checkpoint that is loaded to a GPU moves these along.
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a process of a loader from the random numbers of the training.

    PyTorch has done so already, the same in every process of a distributed
    training; here its rank is added. So each epoch augments differently, and
    alike after resuming. MMEngine's own function gives a process the same seed
    whenever it starts. In a config it is the ``worker_init_fn`` of a
    ``train_dataloader`` with ``persistent_workers=False``.
    """
    rank = int(os.environ.get('RANK', 0))
    seed = (torch.initial_seed() + 1_000_003 * rank) % 2**63
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
