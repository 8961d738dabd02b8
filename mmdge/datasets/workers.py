"""What a process that loads data begins with."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from mmdge.registry import FUNCTIONS


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a process of a loader from the random numbers of the training.

    PyTorch has done so already, the same in every process of a distributed
    training; here its rank is added. So each epoch augments differently, and
    alike after resuming. MMEngine's own function gives a process the same seed
    whenever it starts. In a config::

        train_dataloader = dict(
            persistent_workers=False,
            worker_init_fn=dict(type='mmdge.seed_worker'),
        )

    Args:
        worker_id (int): Not needed, but given.
    """
    rank = int(os.environ.get('RANK', 0))
    seed = (torch.initial_seed() + 1_000_003 * rank) % 2**63
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
