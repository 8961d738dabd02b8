"""Checkpoints that a training can be killed over."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from mmdge.engine import atomic_backend  # noqa: F401  registers it
from mmdge.engine.random_states import get_random_states, set_random_states
from mmdge.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, so that nothing is lost when the process is killed.

    What it adds:

    - A file is whole or not there (:class:`~mmdge.engine.atomic_backend.
      AtomicBackend`), and the oldest is removed after the next was written,
      not before; so there is always one to go on from.
    - The states of the random numbers of all processes travel in the
      checkpoint and are put back on resuming. An evaluation leaves them as
      they were, so that one more or less changes nothing.
    - The evaluation that follows a checkpoint is made again on resuming from
      it, since it may have been cut off, and its metrics with it.

    Args:
        max_keep_ckpts (int): The newest that are kept; -1 are all of them.
            Default: -1.
        backend_args (dict | None): Where and how files are written, see
            :mod:`mmengine.fileio`. Default: None, local and atomic.
        **kwargs: Those of :class:`mmengine.hooks.CheckpointHook`.
    """

    def __init__(
        self,
        *,
        max_keep_ckpts: int = -1,
        backend_args: dict | None = None,
        **kwargs: Any,
    ) -> None:
        # One more for the while in which the next is written.
        room = max_keep_ckpts + (max_keep_ckpts > 0)
        super().__init__(
            max_keep_ckpts=room,
            backend_args=backend_args or dict(backend='mmdge.atomic'),
            **kwargs,
        )
        self._kept = max_keep_ckpts
        self._loaded = None
        self._before_val = None
        self._states = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Remember the random states until the training goes on."""
        super().after_load_checkpoint(runner, checkpoint)
        self._loaded = checkpoint.get('random_states')

    def before_train(self, runner: Any) -> None:
        """On resuming, put things back to where the checkpoint was saved."""
        super().before_train(runner)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            # Its loader is opened once, and again after resuming, for which
            # PyTorch draws a number: not from those of the training, then.
            runner.train_dataloader.generator = torch.Generator()
        if runner.iter == 0:
            return  # weights were loaded at most
        states = self._loaded or []
        if len(states) == get_world_size():
            set_random_states(states[get_rank()])
        else:
            runner.logger.warning(
                f'The checkpoint has random states for {len(states)} '
                f'processes and there are {get_world_size()}: random numbers '
                'begin anew.'
            )
        if _evaluation_is_due(runner):
            runner.logger.info(
                'Evaluating the checkpoint, since the evaluation after it '
                'may have been cut off.'
            )
            runner.val_loop.run()

    def before_val(self, runner: Any) -> None:
        """Remember the random states of the training."""
        self._before_val = get_random_states()

    def after_val(self, runner: Any) -> None:
        """Put them back."""
        set_random_states(self._before_val)
        self._before_val = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the random states, unless it is the best model's weights."""
        super().before_save_checkpoint(runner, checkpoint)
        if self._states is not None:
            checkpoint['random_states'] = self._states

    def _save_checkpoint_with_step(
        self, runner: Any, step: int, meta: dict
    ) -> None:
        """Save, then remove the oldest; in all processes."""
        # The best checkpoint is known, and saved, amid an evaluation.
        own = self._before_val or get_random_states()
        self._states = all_gather_object(own)
        super()._save_checkpoint_with_step(runner, step, meta)
        self._states = None
        if 0 < self._kept < len(self.keep_ckpt_ids):
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            path = self.file_backend.join_path(self.out_dir, name)
            if get_rank() == 0 and self.file_backend.isfile(path):
                self.file_backend.remove(path)


def _evaluation_is_due(runner: Any) -> bool:
    """Whether the loop would evaluate where it is now."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        done, last = runner.epoch, loop.max_epochs
    else:
        done, last = runner.iter, loop.max_iters
    return (
        runner.val_loop is not None
        and done >= loop.val_begin
        and (done % loop.val_interval == 0 or done == last)
    )
