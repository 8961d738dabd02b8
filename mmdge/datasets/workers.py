"""What a process that loads data begins with."""

from __future__ import annotations

from mmdge.registry import FUNCTIONS


@FUNCTIONS.register_module()
def keep_worker_seed(worker_id: int) -> None:
    """Leave the seeds that PyTorch gives to the processes of a loader.

    PyTorch derives them, for Python, NumPy and itself, from the random numbers
    of the training, so each epoch augments differently, and alike after
    resuming. MMEngine's own function gives the same seed to a process whenever
    it starts. In a config::

        train_dataloader = dict(
            persistent_workers=False,
            worker_init_fn=dict(type='mmdge.keep_worker_seed'),
        )

    Args:
        worker_id (int): Not needed, but given.
    """
